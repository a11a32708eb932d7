"""Every downstream config builds, has the recipe of the paper, and trains and predicts with a tiny model."""

import math

import pytest
import torch
from mmengine import Config
from mmengine.registry import (
    DATASETS,
    HOOKS,
    METRICS,
    OPTIM_WRAPPERS,
    PARAM_SCHEDULERS,
    TRANSFORMS,
    VISUALIZERS,
    init_default_scope,
)

from bootmae_mm.config import check_bound, load_config
from bootmae_mm.engine.checks import check_classes
from bootmae_mm.engine.runner import Runner
from bootmae_mm.registry import MODELS
from tests.configs.test_pretrain_configs import with_values
from tests.conftest import ROOT, TINY_ARCH, build, tiny_config
from tests.downstream import tiny, write_data

CONFIGS = sorted(
    path.relative_to(ROOT / 'configs').with_suffix('').as_posix()
    for task in ('cls', 'seg', 'det')
    for path in (ROOT / 'configs' / task).rglob('*.py')
)
FULL = [name for name in CONFIGS if 'vitt' not in name]
# Tested with their own data in tests/tools/test_bad_data.py.
OWN_DATA = ('seg/bootmae_vitb_upernet_folder', 'seg/bootmae_vitb_upernet_binary')


def known(registry, scope, kind):
    """Whether a type is found in a default scope, as a Runner would find it."""
    with registry.switch_scope_and_registry(scope) as scoped:
        return scoped.get(kind) is not None


def read(name):
    return Config.fromfile(ROOT / f'configs/{name}.py')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp('data'))


@pytest.mark.parametrize('name', CONFIGS)
def test_config_builds(name):
    cfg = read(name)
    init_default_scope(cfg.default_scope)
    VISUALIZERS.build(
        dict(cfg.visualizer, vis_backends=None, name=name.replace('/', '-'))
    )  # hooks ask for the current one
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert type(model.backbone).__name__ == 'BootMAEViT'
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        assert known(DATASETS, cfg.default_scope, cfg[loader].dataset.type)
        for transform in cfg[loader].dataset.pipeline:
            assert TRANSFORMS.build(transform) is not None
    for hook in (*cfg.default_hooks.values(), *cfg.get('custom_hooks', [])):
        assert HOOKS.build(hook) is not None
    assert known(METRICS, cfg.default_scope, cfg.test_evaluator.type)
    if 'optim_wrapper' in cfg:
        assert known(OPTIM_WRAPPERS, cfg.default_scope, cfg.optim_wrapper.type)
        last = cfg.param_scheduler[-1].end
        # mmengine's poly decay reaches its end one step early.
        poly = cfg.param_scheduler[-1].type == 'PolyLR' and not cfg.param_scheduler[-1].begin
        assert last - poly == cfg.train_cfg.get('max_epochs', cfg.train_cfg.get('max_iters'))
    assert len((ROOT / f'configs/{name}.py').read_text().splitlines()) < 50 or 'digits' in name


def batch(cfg, gpus=8):
    return gpus * cfg.train_dataloader.batch_size * cfg.optim_wrapper.get('accumulative_counts', 1)


@pytest.mark.parametrize(
    ('name', 'images'),
    [
        (name, {'1percent': 12_811, '10percent': 128_116}.get(name.rsplit('_', 1)[1], 1_281_167))
        for name in FULL
        if name.startswith('cls/')
    ],
)
def test_initial_weights_are_a_small_share_of_the_average(name, images):
    cfg = read(name)
    for hook in cfg.get('custom_hooks', []):
        if hook.type == 'EMAHook':
            steps = images // batch(cfg) * cfg.train_cfg.max_epochs
            assert (1 - hook.momentum) ** steps < 0.01


@pytest.mark.parametrize(
    ('name', 'epochs', 'warmup', 'lr', 'size', 'decay', 'width'),
    [
        ('bootmae_vitb_ft_100e', 100, 20, 5e-3, 2048, 0.6, 768),
        ('bootmae_vitl_ft_50e', 50, 5, 1.5e-3, 1024, 0.75, 1024),
    ],
)
def test_fine_tuning_recipe(name, epochs, warmup, lr, size, decay, width):
    cfg = read(f'cls/{name}')
    assert cfg.train_cfg.max_epochs == epochs and batch(cfg) == size == cfg.auto_scale_lr.base_batch_size
    warm, cosine = cfg.param_scheduler
    assert (warm.begin, warm.end, cosine.begin, cosine.end) == (0, warmup, warmup, epochs)
    wrapper = cfg.optim_wrapper
    assert wrapper.optimizer.lr == lr and wrapper.optimizer.weight_decay == 0.05 and wrapper.dtype == 'bfloat16'
    assert cosine.eta_min_ratio * lr == pytest.approx(1e-6)
    assert wrapper.paramwise_cfg.layer_decay_rate == decay
    backbone, head = cfg.model.backbone, cfg.model.head
    assert backbone.drop_path_rate == 0.1 and backbone.out_type == 'avg_featmap' and not backbone.final_norm
    assert head.in_channels == width and head.loss.label_smooth_val == 0.1
    assert {item.type: item.alpha for item in cfg.model.train_cfg.augments} == dict(Mixup=0.8, CutMix=1.0)
    pipeline = {item.type: item for item in cfg.train_dataloader.dataset.pipeline}
    augment = pipeline['RandAugment']
    assert (augment.policies, augment.magnitude_level, augment.magnitude_std) == ('timm_increasing', 9, 0.5)
    assert pipeline['bootmae_mm.RandomErasing'].erase_prob == 0.25
    assert pipeline['RandAugment'].hparams.pad_val == [128] * 3
    (ema,) = cfg.custom_hooks
    assert ema.type == 'EMAHook' and 1 - ema.momentum == pytest.approx(0.9998)


@pytest.mark.parametrize(
    ('name', 'epochs', 'base_lr', 'block', 'depth'),
    [('bootmae_vitb_linear_90e', 90, 0.1, 10, 12), ('bootmae_vitl_linear_50e', 50, 0.07, 18, 24)],
)
def test_linear_probe_recipe(name, epochs, base_lr, block, depth):
    cfg = read(f'cls/{name}')
    optimizer = cfg.optim_wrapper.optimizer
    assert batch(cfg) == 16384 and cfg.train_cfg.max_epochs == epochs
    assert optimizer.type == 'LARS' and optimizer.weight_decay == 0
    assert optimizer.lr == pytest.approx(base_lr * 16384 / 256)
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model)
    assert model.backbone.out_indices == [block - 1] and model.backbone.num_layers == depth
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {'head.fc.weight', 'head.fc.bias'}
    assert not model.neck.bn.affine
    wrapper_cfg = dict(cfg.optim_wrapper, type='OptimWrapper')
    wrapper_cfg.pop('dtype')
    from mmengine.optim import build_optim_wrapper

    groups = build_optim_wrapper(model, wrapper_cfg).optimizer.param_groups
    excluded = [
        group.get('lars_exclude', False) for group in groups for p in group['params'] if p is model.head.fc.bias
    ]
    assert excluded == [True]


def test_segmentation_recipe():
    cfg = read('seg/bootmae_vitb_upernet_ade20k')
    wrapper = cfg.optim_wrapper
    assert cfg.train_cfg.max_iters == 160000 and batch(cfg) == 16 and wrapper.dtype == 'bfloat16'
    assert (wrapper.optimizer.lr, wrapper.optimizer.weight_decay) == (4e-4, 0.05)
    assert wrapper.paramwise_cfg.layer_decay_rate == 0.65 and wrapper.clip_grad.max_norm == 3
    warm, poly = cfg.param_scheduler
    assert (warm.begin, warm.end) == (0, 1501) and (poly.type, poly.begin, poly.end) == ('PolyLR', 0, 160001)
    backbone = cfg.model.backbone
    assert tuple(backbone.out_indices) == (3, 5, 7, 11) and backbone.drop_path_rate == 0.1
    assert backbone.layer_scale_init_value == 1 and backbone.rel_pos_bias and backbone.img_size == (512, 512)
    assert cfg.model.decode_head.channels == 768 and cfg.model.auxiliary_head.type == 'FCNHead'
    assert cfg.model.test_cfg == dict(mode='slide', crop_size=(512, 512), stride=(341, 341))
    tta = read('seg/bootmae_vitb_upernet_ade20k_ms').test_dataloader.dataset.pipeline[-1].transforms
    assert math.prod(map(len, tta)) == 12  # six scales, flipped or not


def test_detection_recipes():
    once = read('det/bootmae_vitb_mask_rcnn_1x_coco')
    assert once.train_cfg.max_epochs == 12 and batch(once) == 16 and once.optim_wrapper.type == 'AmpOptimWrapper'
    assert len(once.model.neck[0].get('rescales', [4, 2, 1, 0.5])) == 4 and not once.model.backbone.get('window_size')
    vitdet = read('det/bootmae_vitb_vitdet_100e_coco')
    wrapper, backbone = vitdet.optim_wrapper, vitdet.model.backbone
    assert vitdet.train_cfg.max_epochs == 100 and batch(vitdet) == 64
    assert (wrapper.optimizer.lr, wrapper.optimizer.weight_decay) == (1e-4, 0.1)
    assert wrapper.paramwise_cfg.layer_decay_rate == 0.7 and backbone.drop_path_rate == 0.1
    assert backbone.window_size == 14 and len(backbone.global_blocks) == 4 and backbone.img_size == 1024
    assert vitdet.model.neck.type == 'bootmae_mm.SimpleFeaturePyramid'
    jitter = next(item for item in vitdet.train_dataloader.dataset.pipeline if item.type == 'RandomResize')
    assert tuple(jitter.scale) == (1024, 1024) and tuple(jitter.ratio_range) == (0.1, 2.0)


def checkpoint_for(cfg_arch_depth, path):
    """A pretraining checkpoint of a tiny model with another image size."""
    arch = {**TINY_ARCH, 'num_layers': cfg_arch_depth}
    patch = 8 if '_ft_' in path.name or '_linear_' in path.name or '_knn' in path.name else 16
    backbone = dict(type='bootmae_mm.BootMAEViT', arch=arch, img_size=4 * patch, patch_size=patch)
    model = build(tiny_config(backbone=backbone))
    torch.save(dict(state_dict=model.state_dict(), meta=dict(epoch=1)), path)
    return path, model


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in FULL if 'knn' not in name and name not in OWN_DATA])
def test_config_trains_and_predicts(name, data, tmp_path):
    depth = 24 if 'vitl' in name else 12
    path, pretrained = checkpoint_for(depth, tmp_path / f'{name.replace("/", "-")}.pth')
    runner = Runner.from_cfg(tiny(name, data[name.split('/')[0]], tmp_path / 'work', checkpoint=path))
    model = runner.model
    check_classes(model, runner.train_dataloader.dataset)
    before = {}
    original = runner.call_hook

    def call_hook(point, **kwargs):
        if point == 'before_train_epoch' and not before:
            before.update({key: value.clone() for key, value in model.state_dict().items()})
        return original(point, **kwargs)

    runner.call_hook = call_hook
    runner.train()
    # The weights came from the checkpoint, and training changed those that are not frozen.
    assert torch.equal(before['backbone.layers.3.attn.proj.weight'], pretrained.backbone.layers[3].attn.proj.weight)
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert ('backbone.layers.3.attn.proj.weight' in moved) == ('linear' not in name)
    assert any('head' in key for key in moved)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values() if value.is_floating_point())
    metrics = runner.test()
    wanted = dict(cls='accuracy/top1', seg='mIoU', det='coco/segm_mAP')[name.split('/')[0]]
    assert 0 <= metrics[wanted] <= 100


@pytest.mark.parametrize('name', ['cls/bootmae_vitb_ft_100e', 'seg/bootmae_vitb_upernet_ade20k'])
def test_a_run_stops_on_a_loss_that_is_not_finite(name, data, tmp_path):
    """With mixed labels, and with gradient clipping."""
    path, _ = checkpoint_for(12, tmp_path / f'{name.replace("/", "-")}.pth')
    cfg = tiny(name, data[name.split('/')[0]], tmp_path / 'work', checkpoint=path)
    cfg.optim_wrapper.optimizer.lr = 1e30
    cfg.param_scheduler = []
    with pytest.raises(FloatingPointError, match='loss.* not finite at iteration 2'):
        Runner.from_cfg(cfg).train()


def test_knn_features_are_the_mean_patch_token_before_the_final_norm(data, tmp_path):
    path, pretrained = checkpoint_for(12, tmp_path / '_knn.pth')
    cfg = tiny('cls/bootmae_vitb_knn', data['cls'], tmp_path / 'work', checkpoint=path)
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model)
    model.backbone.init_weights()
    model.train(False)
    images = torch.randn(2, 3, 32, 32)
    wanted = pretrained.backbone.encode_patches(images, torch.arange(16).expand(2, -1)).mean(dim=1)
    torch.testing.assert_close(model.extract_feat(images, stage='neck')[-1], wanted, rtol=1e-4, atol=1e-5)
    # Training images are not augmented.
    assert cfg.train_dataloader.dataset.pipeline == cfg.test_dataloader.dataset.pipeline


def test_the_poly_decay_of_upernet_starts_at_iteration_0():
    """The authors' lr (mmcv): (1 - i / 160000), times a warm-up factor in the first 1,500 iterations."""
    cfg = load_config(ROOT / 'configs/seg/bootmae_vitb_upernet_ade20k.py')
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedulers = [PARAM_SCHEDULERS.build(dict(part, optimizer=optimizer)) for part in cfg.param_scheduler]
    for iteration in range(3001):
        warmup = 1 - (1 - iteration / 1500) * (1 - 1e-6) if iteration < 1500 else 1
        assert optimizer.param_groups[0]['lr'] == pytest.approx((1 - iteration / 160000) * warmup, rel=1e-8)
        for scheduler in schedulers:
            scheduler.step()


def test_the_linear_probe_crops_without_retries():
    cfg = load_config(ROOT / 'configs/cls/bootmae_vitb_linear_90e.py')
    step = cfg.train_dataloader.dataset.pipeline[1]
    assert step.type == 'bootmae_mm.RandomResizedCrop' and step.retry is False


@pytest.mark.parametrize('where', ['options', 'child config'])
@pytest.mark.parametrize(
    'name', [name for name in FULL if name.startswith('seg/')], ids=lambda name: name.removeprefix('seg/bootmae_')
)
def test_the_crop_size_of_segmentation_is_stated_once(tmp_path, name, where):
    """Crop, padding, backbone and sliding window follow ``crop_size``."""
    cfg = with_values(name, dict(crop_size=(256, 384)), tmp_path, where)
    check_bound(cfg)
    (crop,) = (step for step in cfg.train_dataloader.dataset.pipeline if step.type == 'RandomCrop')
    sizes = crop.crop_size, cfg.model.data_preprocessor.size, cfg.model.backbone.img_size, cfg.model.test_cfg.crop_size
    assert [tuple(size) for size in sizes] == [(256, 384)] * 4
    assert tuple(cfg.model.test_cfg.stride) == (170, 256)
    with torch.device('meta'):
        assert MODELS.build(cfg.model.backbone).grid_size == (16, 24)


@pytest.mark.parametrize('where', ['options', 'child config'])
@pytest.mark.parametrize(
    'name', [name for name in FULL if name.startswith('cls/')], ids=lambda name: name.removeprefix('cls/bootmae_')
)
def test_the_image_size_of_classification_is_stated_once(tmp_path, name, where):
    """Crops and backbone follow ``img_size``."""
    cfg = with_values(name, dict(img_size=192), tmp_path, where)
    check_bound(cfg)
    assert cfg.model.backbone.img_size == 192
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        steps = {step.type.removeprefix('bootmae_mm.'): step for step in loader.dataset.pipeline}
        if 'RandomResizedCrop' in steps:
            assert steps['RandomResizedCrop'].scale == 192
        else:
            assert steps['ResizeEdge'].scale == round(192 / 0.875) and steps['CenterCrop'].crop_size == 192
