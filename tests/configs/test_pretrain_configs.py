"""Every pretraining config builds and has the numbers of the paper."""

import pytest
import torch
from mmengine import Config
from mmengine.registry import DATASETS, HOOKS, TRANSFORMS, init_default_scope
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS

from bootmae_mm.config import check_bound, load_config
from bootmae_mm.data import build_masking, collate
from bootmae_mm.engine.launch import read_config
from bootmae_mm.engine.schedules import piecewise_linear
from bootmae_mm.registry import MODELS
from tests.conftest import ROOT, build, random_batch, run_config, tiny_config

CONFIGS = sorted(
    path.relative_to(ROOT / 'configs/pretrain').with_suffix('').as_posix()
    for path in (ROOT / 'configs/pretrain').rglob('*.py')
)


def read(name):
    return load_config(ROOT / f'configs/pretrain/{name}.py')


def built(cfg):
    cfg.model.pop('teacher', None)  # its checkpoint does not exist here
    # mmpretrain's HiViT reads values of tensors while it is built.
    with torch.device('cpu' if 'HiViT' in cfg.model.backbone.type else 'meta'):
        return MODELS.build(cfg.model)


@pytest.mark.parametrize('name', CONFIGS)
def test_config_builds(name, image_folder):
    cfg = read(name)
    if name == 'bootmae_auto':  # with its choices
        cfg = read_config(str(ROOT / f'configs/pretrain/{name}.py'), {'data_root': str(image_folder)})
    init_default_scope(cfg.default_scope)
    model = built(cfg)
    dataset = cfg.train_dataloader.dataset
    assert DATASETS.get(dataset.type) is not None
    for transform in dataset.pipeline:
        assert TRANSFORMS.build(transform) is not None
    for hook in cfg.default_hooks.values():
        assert HOOKS.build(hook) is not None
    assert MMENGINE_OPTIM_WRAPPERS.get(cfg.optim_wrapper.type) is not None
    assert build_masking(dataset.masking).grid == model.backbone.grid_size
    for transform in dataset.pipeline:
        if transform.type == 'bootmae_mm.RandomResizedCrop' and name != 'cmae':
            assert TRANSFORMS.build(transform).scale == model.backbone.img_size
    assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_epochs
    assert len((ROOT / f'configs/pretrain/{name}.py').read_text().splitlines()) < 25 or name in (
        'bootmae_vitt_digits',
        'cmae',
    )


def test_main_config_is_the_papers():
    cfg = read('bootmae_vitb')
    model = built(cfg)
    assert (model.backbone.embed_dims, model.backbone.num_layers, model.backbone.num_heads) == (768, 12, 12)
    assert (model.backbone.img_size, model.backbone.patch_size) == ((224, 224), 16)
    pixel, feature = model.neck.decoders['pixel'], model.neck.decoders['feature']
    assert (pixel.width, len(pixel.blocks), pixel.context_block) == (512, 2, 0)
    assert (feature.width, len(feature.blocks), feature.context_block) == (768, 2, 11)
    assert pixel.blocks[0].cross_attn.inner_dims == 504
    assert model.pixel_head.target.normalize == 'channel' and model.weight_mask
    assert not model.feature_head.target.norm
    assert model.has_momentum_teacher
    wrapper = cfg.optim_wrapper
    assert 8 * cfg.train_dataloader.batch_size * wrapper.accumulative_counts == 4096
    assert cfg.auto_scale_lr.base_batch_size == 8 * cfg.train_dataloader.batch_size
    optimizer = wrapper.optimizer
    assert optimizer.lr == pytest.approx(2.4e-3)
    assert (optimizer.type, tuple(optimizer.betas), optimizer.eps, optimizer.weight_decay) == (
        'AdamW',
        (0.9, 0.95),
        1e-8,
        0.05,
    )
    assert 'clip_grad' not in wrapper and wrapper.dtype == 'bfloat16'
    assert cfg.train_cfg.max_epochs == 800
    assert [dict(type=s.type, begin=s.begin, end=s.end) for s in cfg.param_scheduler] == [
        dict(type='LinearLR', begin=0, end=40),
        dict(type='CosineAnnealingLR', begin=40, end=800),
    ]
    assert cfg.param_scheduler[1].eta_min == 1e-4
    assert cfg.default_hooks.ema.decay == [(0, 0.999), (100, 0.9999), (400, 0.99999)]
    assert (cfg.default_hooks.feature_weight.weight, cfg.default_hooks.feature_weight.ramp) == (1.0, 0.25)
    masking = cfg.train_dataloader.dataset.masking
    assert masking == dict(img_size=224, patch_size=16, ratio=0.75, strategy='mix', min_block=16, max_block=60)
    sampling = build_masking(masking)
    assert (sampling.grid, sampling.num_blocked, sampling.num_masked) == ((14, 14), 120, 147)
    crop = cfg.train_dataloader.dataset.pipeline[1]
    assert (crop.scale, crop.crop_ratio_range, crop.get('interpolation', 'bicubic')) == (224, (0.2, 1.0), 'bicubic')
    assert [t.type for t in cfg.train_dataloader.dataset.pipeline] == [
        'bootmae_mm.LoadImage',
        'bootmae_mm.RandomResizedCrop',
        'bootmae_mm.RandomFlip',
        'bootmae_mm.PackImage',
    ]
    assert cfg.model.data_preprocessor.mean == cfg.model.data_preprocessor.std == [127.5] * 3


def test_vitl_config():
    cfg = read('bootmae_vitl')
    model = built(cfg)
    assert (model.backbone.embed_dims, model.backbone.num_layers, model.backbone.num_heads) == (1024, 24, 16)
    assert model.neck.decoders['feature'].context_block == 23 and model.neck.decoders['pixel'].width == 512
    assert cfg.param_scheduler[1].eta_min == 1e-5
    assert cfg.default_hooks.ema.decay == [(0, 0.999), (100, 0.9999)]
    assert 8 * cfg.train_dataloader.batch_size * cfg.optim_wrapper.accumulative_counts == 4096


@pytest.mark.parametrize(
    ('name', 'epochs'),
    [('bootmae_vitb_100e', 100), ('bootmae_vitb_300e', 300), ('bootmae_vitl_100e', 100), ('bootmae_vitl_300e', 300)],
)
def test_shorter_schedules(name, epochs):
    cfg, base = read(name), read(name.rsplit('_', 1)[0])
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[1].end == epochs
    assert cfg.param_scheduler[0].end == cfg.param_scheduler[1].begin
    assert cfg.param_scheduler[1].eta_min == base.param_scheduler[1].eta_min
    # The decay schedule of 800 epochs, cut at the end of this run.
    decay, whole = cfg.default_hooks.ema.pop('decay'), base.default_hooks.ema.pop('decay')
    assert cfg.model == base.model and cfg.default_hooks == base.default_hooks
    assert decay[-1][0] <= epochs
    assert all(piecewise_linear(e, decay) == pytest.approx(piecewise_linear(e, whole)) for e in range(epochs))


def differences(name):
    """Dotted keys of a config that differ from the main config, with their values."""

    def flat(node, prefix=''):
        if isinstance(node, dict) and node:
            return {k: v for key, value in node.items() for k, v in flat(value, f'{prefix}{key}.').items()}
        return {prefix[:-1]: node}

    main, other = flat(read('bootmae_vitb').to_dict()), flat(read(name).to_dict())
    return {key: other.get(key, 'gone') for key in {**main, **other} if main.get(key, 'none') != other.get(key, 'gone')}


GONE_FEATURE = {
    'model.neck.feature': None,
    'model.neck.feature.depth': 'gone',
    'model.neck.feature.context_block': 'gone',
    'model.feature_head': None,
    'model.feature_head.type': 'gone',
}
MASK = 'train_dataloader.dataset.masking.strategy'
ABLATIONS = {
    'no_feature': GONE_FEATURE,
    'no_pixel': {
        'model.neck.pixel': None,
        'model.neck.pixel.width': 'gone',
        'model.neck.pixel.depth': 'gone',
        'model.neck.pixel.context_block': 'gone',
        'model.pixel_head': None,
        'model.pixel_head.type': 'gone',
        'model.pixel_head.normalize': 'gone',
    },
    'no_injection': {'model.neck.pixel.context_block': None, 'model.neck.feature.context_block': None},
    'context_swapped': {'model.neck.pixel.context_block': -1, 'model.neck.feature.context_block': 0},
    'context_shallow': {'model.neck.feature.context_block': 0},
    'context_deep': {'model.neck.pixel.context_block': -1},
    'random_mask': {MASK: 'random'},
    'block_mask': {MASK: 'block'},
    'no_weight_mask': {'model.weight_mask': False},
    'target_after_norm': {'model.teacher_norm': True},
    'frozen_teacher': {'model.teacher.checkpoint': 'checkpoints/mae_vitb.pth', 'model.teacher.prefix': 'backbone.'},
    'plain_mae': {
        **GONE_FEATURE,
        'model.neck.pixel.depth': 8,
        'model.neck.pixel.num_heads': 16,
        'model.neck.pixel.context_block': None,
        'model.pixel_head.normalize': 'patch',
        'model.weight_mask': False,
        MASK: 'random',
    },
}


def test_every_ablation_is_tested():
    assert {f'ablations/{name}' for name in ABLATIONS} == {name for name in CONFIGS if name.startswith('ablations/')}


@pytest.mark.parametrize('name', ABLATIONS)
def test_ablation_differs_in_nothing_else(name):
    assert differences(f'ablations/{name}') == ABLATIONS[name]


def test_frozen_teacher_of_plain_mae(tmp_path):
    """The paper's first experiment: a checkpoint of plain_mae is the teacher of frozen_teacher."""
    mae = tiny_config(feature_head=None, weight_mask=False)
    mae['neck'].update(pixel=dict(width=16, depth=3, context_block=None), feature=None)
    source = build(mae)
    torch.save(dict(state_dict=source.state_dict()), tmp_path / 'mae.pth')
    model = build(tiny_config(teacher=dict(checkpoint=str(tmp_path / 'mae.pth'), prefix='backbone.')))
    assert torch.equal(model.teacher.layers[0].attn.qkv.weight, source.backbone.layers[0].attn.qkv.weight)
    assert model.loss(**random_batch())['feature_loss'].isfinite()


def test_a_child_config_of_three_lines(tmp_path, image_folder):
    base = run_config(tmp_path / 'base.py', image_folder)
    child = tmp_path / 'child.py'
    child.write_text(f"_base_ = '{base}'\nmodel = dict(neck=dict(feature=dict(depth=1)))\n")
    cfg = Config.fromfile(child)
    assert len(MODELS.build(cfg.model).neck.decoders['feature'].blocks) == 1


def with_values(name, values, tmp_path, where):
    """A config whose top-level names have other values, given as options or by a child config."""
    path = ROOT / f'configs/{name}.py'
    if where == 'options':
        return load_config(path, values)
    child = tmp_path / 'child.py'
    lines = [f'_base_ = {str(path)!r}', *(f'{key} = {value!r}' for key, value in values.items())]
    child.write_text('\n'.join(lines) + '\n')
    return load_config(child)


@pytest.mark.parametrize('where', ['options', 'child config'])
@pytest.mark.parametrize(
    ('img_size', 'patch_size'),
    [(192, 8), (192, 16), (224, 8), ((192, 256), 8)],
    ids=['both', 'image', 'patch', 'oblong'],
)
@pytest.mark.parametrize('name', ['bootmae_vitb', 'bootmae_vitb_folder', 'ablations/block_mask'])
def test_sizes_are_stated_once(tmp_path, image_folder, name, img_size, patch_size, where):
    """Crops, masks, backbone and heads follow ``img_size`` and ``patch_size``, each changed alone or with the other."""
    changed = dict(img_size=img_size) if img_size != 224 else {}
    changed |= dict(patch_size=patch_size) if patch_size != 16 else {}
    cfg = with_values(f'pretrain/{name}', {**changed, 'data_root': str(image_folder)}, tmp_path, where)
    check_bound(cfg)
    height, width = size = (img_size, img_size) if isinstance(img_size, int) else img_size
    grid = height // patch_size, width // patch_size
    init_default_scope(cfg.default_scope)
    model = built(cfg)
    assert (model.backbone.img_size, model.backbone.patch_size, model.backbone.grid_size) == (size, patch_size, grid)
    assert model.neck.decoders['pixel'].pos_embed.shape[1] == 1 + grid[0] * grid[1]
    assert model.pixel_head.projection.kernel_size == (patch_size, patch_size)
    load, crop = (TRANSFORMS.build(step) for step in cfg.train_dataloader.dataset.pipeline[:2])
    assert tuple(load.crop_size) == tuple(crop.scale) == size
    resize, center = cfg.test_dataloader.dataset.pipeline[1:3]
    assert resize.scale == round(min(size) / 0.875) and tuple(center.crop_size) == (width, height)
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        assert build_masking(loader.dataset.masking).grid == grid
        batch = collate([DATASETS.build({**loader.dataset, 'folder': ''})[0]])
        assert batch['inputs'].shape == (1, 3, *size)
        assert batch['ids_keep'].shape[1] + batch['ids_mask'].shape[1] == grid[0] * grid[1]


def test_vith_has_patches_of_14():
    model = built(read('bootmae_vith'))
    assert (model.backbone.patch_size, model.backbone.grid_size) == (14, (16, 16))
    assert (model.backbone.embed_dims, model.backbone.num_layers, model.backbone.num_heads) == (1280, 32, 16)
