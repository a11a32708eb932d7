"""``init``: the key of a config that starts a run from the weights of an encoder, of any origin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log

from bootmae_mm.checkpoints.reading import load_file
from bootmae_mm.checkpoints.saved_config import saved_config
from bootmae_mm.checkpoints.sources import fit_statistics, log_source, read_source
from bootmae_mm.validation import require

from .recovery import checkpoint_in, latest_checkpoint

# What follows from the weights; the size of images and patches and the channels are those of the run.
STRUCTURE = ('arch', 'norm_cfg', 'layer_scale_init_value', 'pre_norm', 'layer_cfgs')


def apply_init(cfg: Config, is_given: Callable[[str], bool], resume: str | None = None) -> None:
    """Make the encoder of a config the one in the file that ``init`` names, and load it when the run starts.

    Architecture and variants follow from the file. The position embedding is resized to the images of the run, the
    patch embedding is fitted to its patches and channels. Mean and std become those of the file. What the user sets in
    a config or an option is kept. A run that resumes takes all of that from its own checkpoint instead.

    Args:
        cfg: Config with ``work_dir``, and with the command line applied; changed in place.
        is_given: Whether the user sets a dotted key.
        resume: Value of ``--resume``.

    Raises:
        MissingFileError: If there is no such file.
        ConfigError: If it holds no plain vision transformer, or the user asks for another one.
    """
    if _takes_from_own_checkpoint(cfg, resume):
        return
    init = cfg.get('init')
    if init is None:
        return
    require(isinstance(init, str), f'init must be a path, a URL or hf-hub:ORG/NAME, but is {init!r}')
    require(not cfg.get('load_from'), 'init and load_from both name weights to start from')
    path = checkpoint_in(init)
    source = read_source(path)
    log_source(path, source)
    backbone = cfg.model.backbone
    if is_given('model.backbone.arch'):
        _check_arch(backbone, source.backbone['arch'], path, source.assumes_heads)
    for key in STRUCTURE:
        if key in source.backbone and not is_given(f'model.backbone.{key}'):
            backbone[key] = source.backbone[key]
    patch = source.backbone['patch_size']
    grid = tuple(side // patch for side in source.backbone['img_size'])
    backbone.init_cfg = dict(type='Pretrained', checkpoint=path, adapt=True, grid=grid)
    channels = backbone.get('in_channels', 3)
    preprocessor = cfg.model.setdefault('data_preprocessor', {})
    for key in ('mean', 'std'):
        if not is_given(f'model.data_preprocessor.{key}') and not is_given(key):  # key: the name at the top of a config
            preprocessor[key] = fit_statistics(getattr(source, key), channels)
    text = ', '.join(f'{key} {[round(value, 2) for value in preprocessor[key]]}' for key in ('mean', 'std'))
    print_log(f'images are normalized by {text}', logger='current')


def _takes_from_own_checkpoint(cfg: Config, resume: str | None) -> bool:
    """For a run that resumes, copy from its checkpoint what ``init`` had chosen, even if the config has none now."""
    if resume is None:
        return False
    path = latest_checkpoint(cfg.work_dir) if resume == 'auto' else Path(resume)
    if path is None or not path.is_file():
        return False
    saved = saved_config(load_file(path, mmap=True)) or {}
    if not saved.get('init'):
        return False
    model = saved['model']
    for key in STRUCTURE:
        if key in model['backbone']:
            cfg.model.backbone[key] = model['backbone'][key]
    cfg.model.setdefault('data_preprocessor', {}).update(
        {key: model['data_preprocessor'][key] for key in ('mean', 'std')}
    )
    cfg.init = saved['init']
    print_log(f'structure and statistics of {saved["init"]}, as {path} says', logger='current')
    return True


def _check_arch(backbone: dict, arch: dict, path: str, assumes_heads: bool) -> None:
    """Compare the architecture that the user asks for with that of a file."""
    from bootmae_mm.models import BootMAEViT

    wanted = BootMAEViT._read_arch(backbone['arch'])
    keys = [key for key in arch if arch[key] != wanted[key] and not (assumes_heads and key == 'num_heads')]
    found = ', '.join(f'{key} {arch[key]} instead of {wanted[key]}' for key in keys)
    require(not keys, f'{path} is another model than model.backbone.arch={backbone["arch"]!r}: {found}')
