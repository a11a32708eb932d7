"""Values that are refused before the first iteration; the error names the key."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from torch import nn

from bootmae_mm.data import ImageFolder, RandomResizedCrop
from bootmae_mm.data.paths import check_inside, listed_images
from bootmae_mm.engine import checks
from bootmae_mm.engine.checks import check_checkpoint, check_loader, check_settings, check_validation
from bootmae_mm.engine.hooks import CheckpointHook
from bootmae_mm.engine.launch import is_explained
from bootmae_mm.engine.optimizers import GroupedOptimWrapperConstructor
from bootmae_mm.models import BootMAE, BootMAENeck
from bootmae_mm.models.preprocessor import BootMAEDataPreprocessor
from bootmae_mm.models.tokens import sincos_pos_embed
from bootmae_mm.validation import ConfigError, patch_grid
from tests.conftest import tiny_config
from tests.engine.test_checkpoint import make_runner


@pytest.mark.parametrize(
    ('part', 'key'),
    [
        ('train_cfg', 'max_epochs'),
        ('train_cfg', 'max_iters'),
        ('optim_wrapper', 'accumulative_counts'),
        ('train_dataloader', 'batch_size'),
        ('val_dataloader', 'num_workers'),
    ],
)
@pytest.mark.parametrize('value', [None, -1, 1.5, 10**12, 10**400])
def test_counts(part, key, value):
    with pytest.raises(ConfigError, match=rf'^{part}\.{key} must be .*, but is '):
        check_settings(Config({part: {key: value}}))
    check_settings(Config({part: {key: 1}}))


@pytest.mark.parametrize('value', ['low', float('nan'), [1], True])
def test_numbers_of_schedules(value):
    schedules = [dict(type='LinearLR', begin=0, end=1), dict(type='CosineAnnealingLR', eta_min=value)]
    with pytest.raises(ValueError, match=r'^param_scheduler\.1\.eta_min must be a (valid|finite) number, but is '):
        check_settings(Config(dict(param_scheduler=schedules)))
    schedules[1].update(eta_min=None, eta_min_ratio=0.1)
    check_settings(Config(dict(param_scheduler=schedules)))


@pytest.mark.parametrize(
    'options',
    [
        {'train_cfg.by_epoch': 'maybe'},
        {'randomness.seed': -1},
        {'randomness.seed': 2**32},
        {'randomness.seed': 1.5},
        {'train_dataloader.timeout': 'x'},
        {'env_cfg.dist_cfg.timeout': 0},
        {'optim_wrapper.clip_grad.max_norm': float('nan')},
    ],
)
def test_other_settings(options):
    cfg = Config(dict(train_cfg=dict(by_epoch=True), randomness=dict(seed=None), env_cfg=dict(dist_cfg=dict())))
    check_settings(cfg)
    cfg.merge_from_dict(options)
    (key,) = options
    with pytest.raises(ConfigError, match=f'^{key} must be .*, but is '):
        check_settings(cfg)


@pytest.mark.parametrize(
    ('make', 'key'),
    [
        (lambda: ImageFolder(data_root='.', extensions='png'), 'extensions'),
        (lambda: RandomResizedCrop(32, crop_ratio_range='x'), 'crop_ratio_range'),
        (lambda: RandomResizedCrop(32, crop_ratio_range=(float('nan'), 1)), 'crop_ratio_range'),
        (lambda: RandomResizedCrop(32, aspect_ratio_range=(2, 1)), 'aspect_ratio_range'),
        (lambda: BootMAEDataPreprocessor(std='one'), 'std'),
        (lambda: BootMAEDataPreprocessor(mean=[0, 'a', 0]), 'mean.1'),
        (lambda: BootMAENeck(24, 3, 3, (4, 6), pixel=5), 'pixel'),
        (lambda: BootMAENeck(24, 3, 3, (4, 6), pixel=dict(depth='a')), 'pixel.depth'),
        (
            lambda: GroupedOptimWrapperConstructor(dict(optimizer=dict(type='AdamW')), dict(no_decay=5)),
            'paramwise_cfg.no_decay',
        ),
    ],
)
def test_values_of_the_wrong_type(make, key):
    with pytest.raises(ConfigError, match=rf"^{key}(\.\d)? (must be|'str' instances are not allowed)") as caught:
        make()
    assert is_explained(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('train_cfg', [dict(by_epoch=True, max_epochs=3), dict(by_epoch=False, max_iters=6)])
def test_an_accumulation_longer_than_the_run(train_cfg):
    class Loader(list):
        dataset, batch_size = range(4), 2

    runner = SimpleNamespace(
        train_dataloader=Loader('ab'),
        model=nn.Linear(1, 1),
        world_size=1,
        cfg=Config(
            dict(
                train_dataloader=dict(dataset=dict(type='ImageFolder')),
                train_cfg=train_cfg,
                optim_wrapper=dict(accumulative_counts=7),
            )
        ),
    )
    with pytest.raises(ConfigError, match='too few iterations .* optim_wrapper.accumulative_counts=7 iterations per'):
        check_loader(runner)
    runner.cfg.optim_wrapper.accumulative_counts = 6
    check_loader(runner)


@pytest.mark.parametrize('options', [dict(interval=0), dict(interval=-2), dict(max_keep_ckpts=0), dict(by_epoch='no')])
def test_checkpoints(options):
    with pytest.raises(ConfigError, match=f'^{next(iter(options))} must be .*, but is '):
        CheckpointHook(**options)
    CheckpointHook(interval=-1, max_keep_ckpts=-1, by_epoch=False)


@pytest.mark.parametrize('betas', [[0.9], 0.9, 'ab', [0.9, 1.0], [0.9, None], None])
def test_betas(betas):
    with pytest.raises(ConfigError, match=r'^optimizer\.betas(\.1)? must be .*, but is '):
        GroupedOptimWrapperConstructor(dict(optimizer=dict(type='AdamW', betas=betas)))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(in_channels=1), 'in_channels of the backbone is 1, but mean and std of the data_preprocessor have 3'),
        (dict(final_norm=False), 'final_norm=True'),
        (dict(img_size=2**17), r'img_size\.0 must be less than or equal to 65536, but is 131072'),
        (
            dict(arch=dict(embed_dims=24, num_layers=10**7, num_heads=3, feedforward_channels=48)),
            r'arch\.num_layers must be ',
        ),
    ],
)
def test_backbones_that_cannot_be_pretrained(options, message):
    config = tiny_config()
    config['backbone'].update(options)
    config.pop('type')
    with pytest.raises(ConfigError, match=message):
        BootMAE(**config)


@pytest.mark.parametrize('other', [8, 9])
def test_processes_with_different_images_for_validation(other, monkeypatch):
    monkeypatch.setattr(checks, 'all_gather_object', lambda text: [text, f'{other} images'])
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=range(8)), evaluator=SimpleNamespace(metrics=[]))
    cfg = Config(dict(val_dataloader=dict(dataset=dict(type='ImageFolder'))))
    train = SimpleNamespace(dataset=range(4))
    runner = SimpleNamespace(_val_loop=loop, val_loop=loop, train_dataloader=train, cfg=cfg)
    if other == 8:
        check_validation(runner)
        return
    with pytest.raises(ConfigError, match='process 1 .* a data set for validation other than .* .9 images. instead of'):
        check_validation(runner)


def test_too_many_patches():
    assert patch_grid((512, 512), 1) == (512, 512)
    with pytest.raises(ConfigError, match='^img_size 513x512 must be .* into at most 262144 patches'):
        patch_grid((513, 512), 1)


def test_defects_are_not_explained():
    try:
        int('no number')
    except ValueError as error:
        assert not is_explained(error)
    for defect in (lambda: check_inside(None, 'root', 'list'), lambda: sincos_pos_embed((2, None), 8)):
        with pytest.raises(TypeError) as caught:  # a defect of this package
            defect()
        assert not is_explained(caught.value)
    with pytest.raises(ValueError) as caught:
        Config(dict(a=1)).merge_from_dict({'a.b': 1, 'a': int('x')})
    assert not is_explained(caught.value)


def test_an_error_with_another_cause_is_explained(tmp_path):
    (tmp_path / 'list.txt').write_bytes(b'\xff')
    with pytest.raises(ConfigError, match='is not a list in UTF-8') as caught:
        listed_images(tmp_path, tmp_path / 'list.txt')
    assert is_explained(caught.value)
    with pytest.raises(RuntimeError) as caught:
        try:
            listed_images(tmp_path, tmp_path / 'list.txt')
        except ConfigError as error:
            raise RuntimeError('could not build the data set') from error
    assert is_explained(caught.value)


def test_unusual_values_that_mmengine_accepts_are_not_refused():
    """Values that are unusual here, but have a meaning for mmengine or an optimizer."""
    check_settings(
        Config(
            dict(
                env_cfg=dict(dist_cfg=dict(timeout=None)),
                optim_wrapper=dict(clip_grad=dict(max_norm=float('inf'))),
                param_scheduler=(dict(type='LinearLR', end=1),),
                val_dataloader=None,
            )
        )
    )
    with pytest.raises(ConfigError, match=r'^param_scheduler\.0 must be a valid dictionary'):
        check_settings(Config(dict(param_scheduler=[None])))
    for options in (dict(type='Adan', betas=(0.98, 0.92, 0.99)), dict(type='Adafactor', eps=(1e-30, 1e-3))):
        GroupedOptimWrapperConstructor(dict(optimizer=options))


def test_masks_on_the_device_need_random_ones_of_the_loader(tmp_path, image_folder):
    model = tiny_config(masking=dict(type='bootmae_mm.AttentionMasking'))
    with pytest.raises(ConfigError, match="set masking.strategy='random' instead of 'mix'"):
        check_loader(make_runner(tmp_path, image_folder, {}, model=model))
    options = {'train_dataloader.dataset.masking.strategy': 'random'}
    check_loader(make_runner(tmp_path, image_folder, options, model=model))


def test_a_start_from_weights_without_what_follows(tmp_path, image_folder):
    """What follows by momentum is a copy at a fresh start, so that a checkpoint need not hold it."""
    model = tiny_config(feature_head=None)
    model['neck'].update(feature=None, contrast=dict(depth=1))
    model['contrast_head'] = dict(type='bootmae_mm.ContrastiveHead', hidden=8, dims=4)
    runner = make_runner(tmp_path, image_folder, {}, model=model)
    state = runner.model.state_dict()
    followers = ('teacher.', 'contrast_head.target.')
    torch.save({key: value for key, value in state.items() if not key.startswith(followers)}, tmp_path / 'part.pth')
    check_checkpoint(runner, str(tmp_path / 'part.pth'), complete=False)
    with pytest.raises(ConfigError, match='weights are missing'):
        check_checkpoint(runner, str(tmp_path / 'part.pth'))
