"""Measuring: how fast a training step, a loader and several processes are, and what the hardware could do."""
