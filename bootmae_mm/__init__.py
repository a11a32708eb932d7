"""BootMAE pretraining for OpenMMLab.

Importing this package is cheap: it checks which distributions are installed (without importing them) and registers
the stand-in for mmcv's compiled operators, which acts only where those are missing. The components are imported when
a registry of :mod:`bootmae_mm.registry` is first asked for one.
"""

from .compat.distributions import check_requirements
from .compat.operators import register_stand_in
from .version import __version__

check_requirements()
register_stand_in()

__all__ = ['__version__']
