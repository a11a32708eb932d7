"""Counts of multiply-adds: against the method's known number, and against torch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.flops import step_macs
from bootmae_mm.engine.launch import read_config
from bootmae_mm.registry import MODELS
from tests.conftest import ROOT, build, random_batch, tiny_config


def test_vit_b_costs_what_the_method_says():
    with torch.device('meta'):
        model = MODELS.build(read_config(str(ROOT / 'configs/pretrain/bootmae_vitb.py'), {}).model)
    macs = {name: value / 1e9 for name, value in step_macs(model, num_masked=147).items()}
    # G multiply-adds an image: student, teacher, pixel decoder, feature decoder.
    assert macs == pytest.approx(dict(student=13.1, teacher=17.6, pixel=5.1, feature=11.0), abs=0.05)
    assert sum(macs.values()) == pytest.approx(46.8, abs=0.05)
    assert sum(step_macs(model, 147, needed=True).values()) / sum(step_macs(model, 147).values()) < 0.96


@pytest.mark.parametrize('part', ['both', 'pixel', 'feature'])
def test_what_is_computed_is_what_torch_counts(part):
    # Heads of a width divisible by 8: none is padded.
    arch = dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=80)
    backbone = dict(type='bootmae_mm.BootMAEViT', arch=arch, img_size=(32, 48), patch_size=8)
    config = tiny_config(backbone=backbone, neck=dict(type='bootmae_mm.BootMAENeck', pixel=dict(width=16), feature={}))
    if part == 'pixel':
        config['neck']['feature'], config['feature_head'] = None, None
    if part == 'feature':
        config['neck']['pixel'], config['pixel_head'] = None, None
    model = build(config)
    data = random_batch(batch=2)
    # The counter knows the plain form of attention.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.parse_losses(model.loss(**data))[0].backward()
    wanted = sum(step_macs(model, data['ids_mask'].shape[1], needed=True, batch=2).values())
    assert counter.get_total_flops() / 2 / 2 == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize('masks', [1, 3])
def test_several_masks_cost_the_teacher_once(masks):
    arch = dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=80)
    backbone = dict(type='bootmae_mm.BootMAEViT', arch=arch, img_size=(32, 48), patch_size=8)
    neck = dict(type='bootmae_mm.BootMAENeck', pixel=dict(width=16), feature={})
    model = build(tiny_config(backbone=backbone, neck=neck))
    data = random_batch(batch=2 * masks)
    data['inputs'] = data['inputs'][:2]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.parse_losses(model.loss(**data))[0].backward()
    wanted = sum(step_macs(model, data['ids_mask'].shape[1], needed=True, masks=masks, batch=2 * masks).values())
    assert counter.get_total_flops() / 2 / 2 == pytest.approx(wanted, rel=1e-6)
