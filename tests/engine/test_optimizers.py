import math

import pytest
import torch
from mmengine import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS

from bootmae_mm.engine.optimizers import AutocastOptimWrapper, GroupedOptimWrapperConstructor
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
    with pytest.raises(ValueError, match='norm_decay_mult'):
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
    length = 5  # iterations an epoch
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
    with pytest.raises(ValueError, match='AmpOptimWrapper'):
        AutocastOptimWrapper(optimizer=wrapper.optimizer, dtype='float16')
