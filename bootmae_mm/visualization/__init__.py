"""Pictures: reconstructions, predictions, curves, timings."""

from .curves import draw_curves, read_scalars
from .predictions import contact_sheet, overlay_instances, overlay_map
from .reconstruction import draw_reconstruction, reconstruct
from .timing import draw_parts

__all__ = [
    'contact_sheet',
    'draw_curves',
    'draw_parts',
    'draw_reconstruction',
    'overlay_instances',
    'overlay_map',
    'read_scalars',
    'reconstruct',
]
