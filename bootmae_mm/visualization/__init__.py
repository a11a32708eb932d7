"""Pictures: reconstructions, predictions and curves."""

from .curves import draw_curves, read_scalars
from .predictions import contact_sheet, overlay_instances, overlay_map
from .reconstruction import draw_reconstruction, reconstruct

__all__ = [
    'contact_sheet',
    'draw_curves',
    'draw_reconstruction',
    'overlay_instances',
    'overlay_map',
    'read_scalars',
    'reconstruct',
]
