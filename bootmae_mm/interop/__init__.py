"""Bridges to other programs: OpenMMLab's distributions, compiled operators, the authors' checkpoints."""
