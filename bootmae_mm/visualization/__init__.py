"""Pictures: reconstructions, curves, and a report with all of them."""

from .curves import draw_curves, read_scalars
from .feature_map import draw_map
from .features import feature_panels
from .reconstruction import draw_panels, predicts_pixels, reconstruct, sample_panels
from .report import drawn, write_report

__all__ = [
    'draw_curves',
    'draw_map',
    'draw_panels',
    'drawn',
    'feature_panels',
    'predicts_pixels',
    'read_scalars',
    'reconstruct',
    'sample_panels',
    'write_report',
]
