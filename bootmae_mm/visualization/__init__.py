"""Pictures: reconstructions and curves."""

from .curves import draw_curves, read_scalars
from .reconstruction import draw_reconstruction, predicts_pixels, reconstruct

__all__ = ['draw_curves', 'draw_reconstruction', 'predicts_pixels', 'read_scalars', 'reconstruct']
