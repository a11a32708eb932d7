"""Checks that one of the two families of OpenMMLab distributions is there, in a supported version."""

from __future__ import annotations

from importlib import metadata

# import name -> {distribution: (lowest version, first version that is too new)}
SUPPORTED = {
    'mmengine': {'onedl-mmengine': ('0.10.12', '0.11'), 'mmengine': ('0.10.7', '0.12')},
    'mmcv': {'onedl-mmcv': ('2.3.6', '2.4'), 'mmcv': ('2.1.0', '2.3'), 'mmcv-lite': ('2.1.0', '2.3')},
    'mmpretrain': {'onedl-mmpretrain': ('1.3.6', '1.4'), 'mmpretrain': ('1.2.0', '1.3')},
}
# Its language models import names that transformers has removed since; the versions are those in which that was seen.
BREAKS_BESIDE_TRANSFORMERS = {'onedl-mmpretrain': '5', 'mmpretrain': '4.57'}
INSTALL = "pip install 'bootmae_mm[onedl]' (maintained distributions) or 'bootmae_mm[openmmlab]' (the original ones)"


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """'0.11.0rc3' -> (0, 11, 0): pre-releases count as the release."""
    numbers = []
    for part in version.split('+')[0].split('.'):
        digits = ''
        for character in part:
            if not character.isdigit():
                break
            digits += character
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def check_requirements() -> None:
    """Raise one clear line if a needed package is missing, doubled or out of range.

    Only reads the metadata of installed distributions; nothing is imported.

    Raises:
        ImportError: With the package, what was found and what to install.
    """
    for package, distributions in SUPPORTED.items():
        found = {name: version for name in distributions if (version := _version(name)) is not None}
        if not found:
            raise ImportError(f'bootmae_mm needs {package}, and no distribution of it is installed: {INSTALL}')
        if len(found) > 1:
            raise ImportError(
                f'{" and ".join(found)} are both installed and overwrite each other as `{package}`: '
                'uninstall both, then install one'
            )
        for name, version in found.items():
            low, high = distributions[name]
            if not _numbers(low) <= _numbers(version) < _numbers(high):
                raise ImportError(f'bootmae_mm supports {name} >= {low}, < {high}, but {version} is installed')
    transformers = _version('transformers')
    for name, too_new in BREAKS_BESIDE_TRANSFORMERS.items():
        if transformers is not None and _numbers(transformers) >= _numbers(too_new) and _version(name) is not None:
            raise ImportError(
                f'{name} cannot be imported beside transformers {transformers}, though it does not need it: '
                f"pip install 'transformers<{too_new}', or uninstall transformers"
            )
