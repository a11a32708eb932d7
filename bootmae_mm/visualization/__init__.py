"""Pictures: reconstructions, curves, and a report with all of them."""

from .curves import draw_curves, read_scalars
from .reconstruction import draw_reconstruction, predicts_pixels, reconstruct, sample_panels
from .report import reconstructions, write_report

__all__ = [
    'draw_curves',
    'draw_reconstruction',
    'predicts_pixels',
    'read_scalars',
    'reconstruct',
    'reconstructions',
    'sample_panels',
    'write_report',
]
