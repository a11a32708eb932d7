"""Check for one of the two families of OpenMMLab distributions, in a supported version."""

from __future__ import annotations

import re
from importlib import metadata

# import name -> {distribution: (lowest version, first version that is too new)}
SUPPORTED = {
    'mmengine': {'onedl-mmengine': ('0.10.12', '0.11'), 'mmengine': ('0.10.7', '0.12')},
    'mmcv': {'onedl-mmcv': ('2.3.6', '2.4'), 'mmcv': ('2.1.0', '2.3'), 'mmcv-lite': ('2.1.0', '2.3')},
    'mmpretrain': {'onedl-mmpretrain': ('1.3.6', '1.4'), 'mmpretrain': ('1.2.0', '1.3')},
}
# mmpretrain's language models import names that transformers has removed; these versions are known to fail.
BREAKS_BESIDE_TRANSFORMERS = {'onedl-mmpretrain': '5', 'mmpretrain': '4.57'}
INSTALL = "pip install 'bootmae_mm[onedl]' (maintained distributions) or 'bootmae_mm[openmmlab]' (the original ones)"


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """'0.11.0rc3' -> (0, 11, 0): pre-releases count as the release."""
    return tuple(int(number) for number in re.match(r'\d+(\.\d+)*', version)[0].split('.'))  # type: ignore[index]


def check_requirements() -> None:
    """Raise an error of one line if a needed package is missing, installed twice or out of range.

    Reads metadata of installed distributions only; imports nothing.

    Raises:
        ImportError: With the package, the version found and what to install.
    """
    for package, distributions in SUPPORTED.items():
        found = {name: version for name in distributions if (version := _version(name)) is not None}
        problem = ''
        if len(found) > 1:
            problem = f'{" and ".join(found)} are both installed, and overwrite each other: uninstall both'
        for name, version in found.items():
            low, high = distributions[name]
            if not _numbers(low) <= _numbers(version) < _numbers(high):
                problem = problem or f'bootmae_mm supports {name} >= {low}, < {high}, but {version} is installed'
        if problem or not found:
            problem = problem or f'bootmae_mm needs {package}, which is not installed'
            raise ImportError(f'{problem}; to install: {INSTALL}')
    transformers = _version('transformers')
    for name, too_new in BREAKS_BESIDE_TRANSFORMERS.items():
        if transformers is not None and _numbers(transformers) >= _numbers(too_new) and _version(name) is not None:
            raise ImportError(
                f'{name} cannot be imported beside transformers {transformers}, though it does not need it: '
                f"pip install 'transformers<{too_new}', or uninstall transformers"
            )
