"""Compatibility: OpenMMLab distributions, and operators of mmcv."""
