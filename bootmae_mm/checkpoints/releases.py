"""Weights that the authors of BootMAE released, by the name of their model: ``official:bootmae_vitb``."""

from __future__ import annotations

from mmengine.fileio import load

from bootmae_mm.installed import root
from bootmae_mm.validation import ConfigError

OFFICIAL = 'official:'


def official_releases() -> dict[str, dict[str, str]]:
    """The releases in the metafiles of the configs: ``Weights`` (a URL) and ``License`` by the name of the model."""
    found = {}
    for file in sorted((root() / 'configs').glob('*/metafile.yml')):
        for model in load(str(file)).get('Models') or []:
            if 'Official' in model['Metadata']:
                found[model['Name']] = model['Metadata']['Official']
    return found


def official_url(name: str) -> str:
    """Address of a release.

    Args:
        name: Name of the model.

    Raises:
        ConfigError: If the authors released no such model.
    """
    known = official_releases()
    if name not in known:
        raise ConfigError(f'the authors released no {name!r}; {OFFICIAL} knows {", ".join(known)}')
    return known[name]['Weights']
