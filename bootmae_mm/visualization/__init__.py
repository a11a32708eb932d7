"""Pictures: reconstructions and curves."""

from .curves import draw_curves, read_scalars
from .reconstruction import draw_reconstruction, reconstruct

__all__ = ['draw_curves', 'draw_reconstruction', 'read_scalars', 'reconstruct']
