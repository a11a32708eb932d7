"""Multiply-adds: against the known numbers of the method, and against torch's counter."""

import pytest
import torch
from mmpretrain.models import VisionTransformer
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.flops import step_macs
from bootmae_mm.engine.launch import read_config
from bootmae_mm.registry import MODELS
from tests.conftest import ROOT, build, random_batch, tiny_config


def test_vit_b_has_the_known_cost():
    with torch.device('meta'):
        model = MODELS.build(read_config(str(ROOT / 'configs/pretrain/bootmae_vitb.py'), {}).model)
    macs = {name: value / 1e9 for name, value in step_macs(model, num_masked=147).items()}
    # Billions of multiply-adds per image: student, teacher, pixel decoder, feature decoder.
    assert macs == pytest.approx(dict(student=13.1, teacher=17.6, pixel=5.1, feature=11.0), abs=0.05)
    assert sum(macs.values()) == pytest.approx(46.8, abs=0.05)
    assert sum(step_macs(model, 147, needed=True).values()) / sum(step_macs(model, 147).values()) < 0.96


@pytest.mark.parametrize('part', ['both', 'pixel', 'feature'])
def test_computed_multiply_adds_are_those_that_torch_counts(part):
    arch = dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=80)
    backbone = dict(type='bootmae_mm.BootMAEViT', arch=arch, img_size=(32, 48), patch_size=8)
    config = tiny_config(
        backbone=backbone, neck=dict(type='bootmae_mm.BootMAENeck', pixel=dict(width=20, num_heads=3), feature={})
    )
    if part == 'pixel':
        config['neck']['feature'], config['feature_head'] = None, None
    if part == 'feature':
        config['neck']['pixel'], config['pixel_head'] = None, None
    model = build(config)
    data = random_batch(batch=2)
    # The counter needs attention as matrix products.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.parse_losses(model.loss(**data))[0].backward()
    wanted = sum(step_macs(model, data['ids_mask'].shape[1], needed=True).values())
    assert counter.get_total_flops() / 2 / 2 == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize('kind', ['attention', 'predicted errors', 'hog', 'frozen', 'hivit', 'contrast', 'clusters'])
def test_multiply_adds_of_other_masks_and_targets(kind, tmp_path):
    arch = dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=80)
    backbone = dict(type='bootmae_mm.BootMAEViT', arch=arch, img_size=(32, 48), patch_size=8)
    neck = dict(type='bootmae_mm.BootMAENeck', pixel=dict(width=16), feature={})
    config = tiny_config(backbone=backbone, neck=neck)
    if kind == 'attention':
        config['masking'] = dict(type='bootmae_mm.AttentionMasking')
    elif kind == 'predicted errors':
        neck['difficulty'] = dict(width=12, context_block=None)
        target, loss = dict(type='bootmae_mm.ErrorTarget'), dict(type='bootmae_mm.PatchRanking')
        config['difficulty_head'] = dict(type='bootmae_mm.BootMAEHead', target=target, loss=loss)
        config['masking'] = dict(type='bootmae_mm.PredictedErrorMasking', share=0.5)
    elif kind == 'contrast':
        neck.update(feature=None, contrast=dict(depth=1))
        config.update(feature_head=None, contrast_head=dict(type='bootmae_mm.ContrastiveHead', hidden=16, dims=8))
    elif kind == 'clusters':
        target = dict(type='bootmae_mm.ClusterTarget', clusters=10)
        config['feature_head'] = dict(type='bootmae_mm.ClusterHead', target=target)
    elif kind == 'hivit':
        arch = dict(embed_dims=32, depths=[1, 1, 2], num_heads=2)
        config['backbone'] = dict(type='bootmae_mm.BootMAEHiViT', arch=arch, img_size=(32, 48), patch_size=8)
    elif kind == 'hog':
        config['feature_head']['target'] = dict(type='bootmae_mm.HOGTarget')
    else:
        vit = VisionTransformer(arch=arch, img_size=(16, 24), patch_size=4)
        torch.save(vit.state_dict(), tmp_path / 'vit.pth')
        encoder = dict(type='VisionTransformer', arch=arch, patch_size=4)
        config['feature_head']['target'] = dict(
            type='bootmae_mm.FrozenTarget', encoder=encoder, checkpoint=str(tmp_path / 'vit.pth'), patch_size=4
        )
    model = build(config)
    data = random_batch(batch=2)
    if kind == 'contrast':
        data['view'] = torch.randn(2, 3, 32, 48)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.parse_losses(model.loss(**data))[0].backward()
    parts = step_macs(model, data['ids_mask'].shape[1], needed=True)
    assert ('teacher' in parts) == (kind not in ('hog', 'frozen'))
    # HiViT's count includes the gradient of the pixels, which is not computed; the cosines of contrast are left out.
    tolerance = {'hivit': 2e-2, 'contrast': 1e-4}.get(kind, 1e-6)
    assert counter.get_total_flops() / 2 / 2 == pytest.approx(sum(parts.values()), rel=tolerance)


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
    wanted = sum(step_macs(model, data['ids_mask'].shape[1], needed=True, masks=masks).values())
    assert counter.get_total_flops() / 2 / 2 == pytest.approx(wanted, rel=1e-6)
