"""Optimizer wrappers and their constructors: parameter groups, learning rates, precision."""

import math

import pytest
import torch
from mmengine import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS

from bootmae_mm.engine.optimizers import (
    AutocastOptimWrapper,
    GroupedOptimWrapperConstructor,
    LayerDecayOptimWrapperConstructor,
)
from bootmae_mm.validation import ConfigError
from tests.conftest import ROOT, build, tiny_config


def test_groups_parameter_by_parameter(model):
    wrapper = build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            constructor='bootmae_mm.GroupedOptimWrapperConstructor',
            optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.05),
        ),
    )
    decay = {id(p): group['weight_decay'] for group in wrapper.optimizer.param_groups for p in group['params']}
    assert len(wrapper.optimizer.param_groups) == 2
    seen = 0
    for name, parameter in model.named_parameters():
        if name.startswith('teacher.') or name == 'backbone.pos_embed':
            assert id(parameter) not in decay, name
            continue
        seen += 1
        without = parameter.dim() == 1 or name.endswith('.bias') or name == 'backbone.cls_token'
        assert decay[id(parameter)] == (0.0 if without else 0.05), name
    assert seen == len(decay)
    tokens = [p for n, p in model.named_parameters() if n.endswith('mask_token')]
    assert len(tokens) == 2 and all(decay[id(p)] == 0.05 for p in tokens)  # as in the authors' code


def test_unknown_option():
    with pytest.raises(ConfigError, match=r"^paramwise_cfg has unknown option\(s\) \['norm_decay_mult'\]"):
        GroupedOptimWrapperConstructor(dict(optimizer=dict(type='SGD')), dict(norm_decay_mult=0))


def test_key_bias_stays_zero_under_adamw(batch):
    model = build(tiny_config())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith('qkv.bias'):
                parameter.zero_()
    wrapper = GroupedOptimWrapperConstructor(dict(optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.05)))(model)
    for _ in range(3):
        wrapper.update_params(model.parse_losses(model.loss(**batch))[0])
    for layer in model.backbone.layers:
        assert torch.equal(layer.attn.qkv.bias[24:48], torch.zeros(24))
        assert layer.attn.qkv.bias[:24].abs().min() > 0


@pytest.mark.parametrize(
    ('name', 'low', 'epochs'),
    [('bootmae_vitb', 1e-4, 800), ('bootmae_vitl', 1e-5, 800), ('bootmae_vitb_300e', 1e-4, 300)],
)
def test_learning_rate_of_every_iteration(name, low, epochs):
    cfg = Config.fromfile(ROOT / f'configs/pretrain/{name}.py')
    length = 5  # iterations per epoch
    high = cfg.optim_wrapper.optimizer.lr
    assert high == pytest.approx(2.4e-3)
    parameter = torch.nn.Parameter(torch.zeros(1))
    wrapper = OptimWrapper(torch.optim.AdamW([parameter], lr=high))
    schedulers = []
    for scheduler in cfg.param_scheduler:
        cls = PARAM_SCHEDULERS.get(scheduler.pop('type'))
        scheduler.pop('convert_to_iter_based')
        schedulers.append(cls.build_iter_from_epoch(wrapper, epoch_length=length, **scheduler))
    warm = 40 * length
    for iteration in range(epochs * length):
        if iteration < warm:
            wanted = high * iteration / (warm - 1)
        else:
            wanted = low + (high - low) * 0.5 * (1 + math.cos(math.pi * (iteration - warm) / (epochs * length - warm)))
        found = wrapper.get_lr()['lr'][0]
        assert found == pytest.approx(wanted, rel=1e-4, abs=2e-6 * high), iteration
        wrapper.step()
        for scheduler in schedulers:
            scheduler.step()


def test_autocast_without_loss_scaling(model, batch):
    wrapper = AutocastOptimWrapper(optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    with wrapper.optim_context(model):
        assert (batch['inputs'].flatten(1)[:, :24] @ torch.zeros(24, 2)).dtype == torch.bfloat16
    assert not hasattr(wrapper, 'loss_scaler')
    full = AutocastOptimWrapper(optimizer=wrapper.optimizer, dtype='float32')
    with full.optim_context(model):
        assert (batch['inputs'].flatten(1)[:, :24] @ torch.zeros(24, 2)).dtype == torch.float32
    with pytest.raises(ConfigError, match="^dtype must be 'bfloat16' or 'float32', but is 'float16'$"):
        AutocastOptimWrapper(optimizer=wrapper.optimizer, dtype='float16')


def depth_by_the_rule(name: str, layers: int) -> int:
    """Expected depth of a parameter of a model with a backbone, from its name."""
    if not name.startswith('backbone.'):
        return layers + 1
    name = name[len('backbone.') :]
    if name.startswith('layers.'):
        return int(name.split('.')[1]) + 1
    return 0 if name.split('.')[0] in ('cls_token', 'pos_embed', 'patch_embed') else layers + 1


@pytest.mark.parametrize(
    'name',
    ['cls/bootmae_vitb_ft_100e', 'seg/bootmae_vitb_upernet_ade20k', 'det/bootmae_vitb_vitdet_100e_coco'],
    ids=['classifier', 'EncoderDecoder', 'MaskRCNN'],
)
def test_layer_decay_parameter_by_parameter(name, tmp_path):
    from mmengine.registry import init_default_scope

    from bootmae_mm.registry import MODELS
    from tests.downstream import tiny

    cfg = tiny(name, tmp_path, tmp_path)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    rate, lr, decay = 0.5, 0.1, 0.05
    wrapper = LayerDecayOptimWrapperConstructor(
        dict(optimizer=dict(type='AdamW', lr=lr, weight_decay=decay)), dict(layer_decay_rate=rate)
    )(model)
    groups = {id(p): group for group in wrapper.optimizer.param_groups for p in group['params']}
    seen = 0
    for key, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert id(parameter) not in groups
            continue
        seen += 1
        group = groups[id(parameter)]
        assert group['lr'] == pytest.approx(lr * rate ** (13 - depth_by_the_rule(key, 12))), key
        without = parameter.dim() == 1 or key.endswith('.bias') or key in ('backbone.pos_embed', 'backbone.cls_token')
        assert group['weight_decay'] == (0.0 if without else decay), key
    assert seen == len(groups) > 50
    assert len(wrapper.optimizer.param_groups) <= 2 * 14
    if 'seg' in name:
        table = model.backbone.layers[0].attn.rel_pos_bias.relative_position_bias_table
        assert groups[id(table)]['weight_decay'] == decay and groups[id(model.backbone.pos_embed)]['weight_decay'] == 0


def test_layer_decay_of_a_bare_backbone(model):
    wrapper = LayerDecayOptimWrapperConstructor(dict(optimizer=dict(type='SGD', lr=1.0)), dict(layer_decay_rate=0.1))(
        model.backbone
    )
    rates = {id(p): group['lr'] for group in wrapper.optimizer.param_groups for p in group['params']}
    assert rates[id(model.backbone.patch_embed.projection.weight)] == pytest.approx(1e-4)
    assert rates[id(model.backbone.layers[2].ln1.weight)] == pytest.approx(0.1)
    assert rates[id(model.backbone.ln1.weight)] == 1.0


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (None, r'paramwise_cfg\.layer_decay_rate is missing'),
        (dict(layer_decay_rate=1.5), r'paramwise_cfg\.layer_decay_rate must be less than or equal to 1, but is 1.5'),
        (dict(layer_decay_rate=0), r'paramwise_cfg\.layer_decay_rate must be greater than 0, but is 0'),
        (dict(decay_rate=0.5), r"paramwise_cfg has unknown option\(s\) \['decay_rate'\]; .*layer_decay_rate"),
    ],
)
def test_impossible_options_of_layer_decay(options, message):
    with pytest.raises(ConfigError, match=f'^{message}'):
        LayerDecayOptimWrapperConstructor(dict(optimizer=dict(type='SGD', lr=1.0)), options)


def test_layer_decay_needs_depths():
    constructor = LayerDecayOptimWrapperConstructor(
        dict(optimizer=dict(type='SGD', lr=1.0)), dict(layer_decay_rate=0.5)
    )
    with pytest.raises(ValueError, match='Linear has no get_layer_depth'):
        constructor(torch.nn.Linear(2, 2))
    frozen = torch.nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match='nothing to train'):
        constructor(frozen)
