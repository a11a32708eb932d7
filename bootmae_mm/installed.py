"""Where configs, tools and weights are: in the package if it is installed, else in the repository beside it."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
SCOPE = 'bootmae_mm::'


def root() -> Path:
    """Folder that has ``configs`` and ``tools``."""
    installed = PACKAGE / '.mim'
    return installed if (installed / 'configs').is_dir() else PACKAGE.parent


def config_file(name: str | Path) -> Path:
    """Path of a config; a name such as ``bootmae_mm::pretrain/bootmae_vitb.py`` is one that comes with the package."""
    text = str(name)
    if not text.startswith(SCOPE):
        return Path(name)
    path = root() / 'configs' / text.removeprefix(SCOPE)
    return path if path.suffix else path.with_suffix('.py')


def weights_path(name: str | Path) -> Path:
    """Path of weights; ``bootmae_mm::weights/NAME`` are some that come with the package."""
    text = str(name)
    return root() / text.removeprefix(SCOPE) if text.startswith(SCOPE) else Path(name)


def installed_configs() -> list[str]:
    """Names of the configs that come with the package, such as ``pretrain/bootmae_vitb.py``, without base files."""
    folder = root() / 'configs'
    names = [path.relative_to(folder) for path in folder.rglob('*.py')]
    return sorted(name.as_posix() for name in names if name.parts[0] != '_base_')
