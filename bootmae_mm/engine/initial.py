"""``init``: the key of a config that starts a run from the weights of an encoder, of any origin."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from bootmae_mm.checkpoints.sources import fit_statistics, log_source, read_source
from bootmae_mm.validation import require

from .recovery import checkpoint_in

# What follows from the weights; the size of images and patches and the channels are those of the run.
STRUCTURE = ('arch', 'norm_cfg', 'layer_scale_init_value', 'pre_norm', 'layer_cfgs')


def apply_init(cfg: Config, options: dict[str, Any]) -> None:
    """Make the encoder of a config the one in the file that ``init`` names, and load it when the run starts.

    Architecture and variants follow from the file. The position embedding is resized to the images of the run, the
    patch embedding is fitted to its patches and channels. Mean and std become those of the file. What an option of the
    command line sets is kept.

    Args:
        cfg: Config with the command line applied; changed in place.
        options: Options of the command line.

    Raises:
        MissingFileError: If there is no such file.
        ConfigError: If it holds no plain vision transformer, or an option asks for another one.
    """
    init = cfg.get('init')
    if init is None:
        return
    require(isinstance(init, str), f'init must be a path, a URL or hf-hub:ORG/NAME, but is {init!r}')
    require(not cfg.get('load_from'), 'init and load_from both name weights to start from')
    path = checkpoint_in(init)
    source = read_source(path)
    log_source(path, source)
    backbone = cfg.model.backbone
    if 'model.backbone.arch' in options:
        _check_arch(backbone, source.backbone['arch'], path)
    for key in STRUCTURE:
        if key in source.backbone and not any(option.startswith(f'model.backbone.{key}') for option in options):
            backbone[key] = source.backbone[key]
    backbone.init_cfg = dict(type='Pretrained', checkpoint=path, adapt=True)
    channels = backbone.get('in_channels', 3)
    preprocessor = cfg.model.setdefault('data_preprocessor', {})
    for key in ('mean', 'std'):
        if f'model.data_preprocessor.{key}' not in options:
            preprocessor[key] = fit_statistics(getattr(source, key), channels)
    text = ', '.join(f'{key} {[round(value, 2) for value in preprocessor[key]]}' for key in ('mean', 'std'))
    print_log(f'images are normalized as those of {path}: {text}', logger='current')


def _check_arch(backbone: dict, arch: dict, path: str) -> None:
    """Compare the architecture that an option asks for with that of a file."""
    from bootmae_mm.models import BootMAEViT

    wanted = BootMAEViT._read_arch(backbone['arch'])
    keys = [key for key in arch if arch[key] != wanted[key]]
    found = ', '.join(f'{key} {arch[key]} instead of {wanted[key]}' for key in keys)
    require(not keys, f'{path} is another model than model.backbone.arch={backbone["arch"]!r}: {found}')
