"""Checkpoints: safe reading, encoders, names of other programs, atomic writing."""
