"""The hierarchical encoder: against mmpretrain's on the same weights, and in mmseg's and mmdet's models."""

import pytest
import torch
from mmengine import Config
from mmengine.registry import init_default_scope
from mmpretrain.models import HiViT
from mmpretrain.models.selfsup.mae import MAEHiViT

from bootmae_mm.checkpoints.encoder import load_encoder
from bootmae_mm.models import BootMAEHiViT
from bootmae_mm.validation import ConfigError
from tests.conftest import ROOT, build, random_batch, tiny_config

# More plain blocks than others: mmpretrain's HiViT counts both from 0, and takes a map after either.
ARCH = dict(embed_dims=32, depths=[1, 1, 7], num_heads=2)


def encoder(**options):
    torch.manual_seed(0)
    made = BootMAEHiViT(**{**dict(arch=dict(ARCH), img_size=(32, 32), patch_size=8), **options})
    made.init_weights()
    for parameter in made.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return made.eval()


def of_library(kind, own, **options):
    other = kind(arch=dict(ARCH), img_size=32, patch_size=8, norm_cfg=dict(type='LN', eps=1e-6), **options)
    result = other.load_state_dict(own.state_dict(), strict=False)
    assert result.missing_keys == [] and set(result.unexpected_keys) == {'norm.weight', 'norm.bias'}
    other.eval()
    return other


def test_map_is_that_of_mmpretrain():
    own = encoder()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        (wanted,) = of_library(HiViT, own, out_indices=[6])(images)
        (found,) = own(images)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), own.encode_last(own.encode_hidden(images)[-1]))


def test_visible_tokens_are_those_of_mmpretrain(monkeypatch):
    own = encoder()
    other = of_library(MAEHiViT, own, mask_ratio=0.75)
    images, ids_keep = torch.randn(2, 3, 32, 32), torch.rand(2, 16).argsort(1)[:, :4]
    monkeypatch.setattr(other, 'masking_id', lambda batch, ratio: (ids_keep, None, None))
    # It would resize the position embedding by 4.1 / 4, as the number of kept patches is not that of all.
    monkeypatch.setattr(other, 'interpolate_pos_encoding', lambda *_: other.pos_embed)
    with torch.no_grad():
        wanted = other(images)[0]
        found, context = own.encode_visible(images, ids_keep, {6})
    torch.testing.assert_close(context[6], wanted)
    torch.testing.assert_close(found, own.norm(wanted))


def test_kept_patches_do_not_depend_on_masked_ones():
    own = encoder()
    images, ids_keep = torch.randn(1, 3, 32, 32), torch.tensor([[0, 5, 10]])
    other = images.clone()
    other[:, :, :, 24:] = 7.0  # the patches of the last column
    with torch.no_grad():
        torch.testing.assert_close(own.encode_visible(images, ids_keep)[0], own.encode_visible(other, ids_keep)[0])
    every = torch.arange(16)[None]
    torch.testing.assert_close(own.embed_kept(images, every), own.embed_all(images))


def test_maps_of_all_stages_and_of_other_sizes():
    own = encoder(out_indices=(0, 1, 2))
    shapes = [tuple(x.shape) for x in own(torch.randn(1, 3, 30, 48))]
    assert shapes == [(1, 8, 16, 24), (1, 16, 8, 12), (1, 32, 4, 6)]
    images = torch.zeros(1, 3, 32, 32)
    images[:, :, 8:16, 16:24] = torch.randn(3, 8, 8)  # patch (1, 2)
    changed = (own(images)[0] - own(torch.zeros_like(images))[0]).abs().amax((0, 1)) > 1e-6
    assert changed.nonzero().amin(0).tolist() == [4, 8] and changed.nonzero().amax(0).tolist() == [7, 11]


def hivit_config(**changes):
    backbone = dict(type='bootmae_mm.BootMAEHiViT', arch=dict(ARCH), img_size=(32, 48), patch_size=8)
    return tiny_config(backbone=backbone, **changes)


def test_pretraining_step(batch):
    model = build(hivit_config())
    total, log = model.parse_losses(model.loss(**batch))
    total.backward()
    for name, parameter in model.named_parameters():
        if name.startswith('teacher.') or name == 'backbone.pos_embed':
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert 0 < log['feature_target_std'] < 2
    several = random_batch(batch=6)
    several['inputs'] = several['inputs'][:3]
    assert model.loss(**several)['feature_loss'].isfinite()


def test_checkpointing_keeps_gradients(batch):
    model = build(hivit_config()).train()
    gradients = []
    for with_cp in (False, True):
        model.backbone.with_cp = with_cp
        model.zero_grad()
        model.parse_losses(model.loss(**batch))[0].backward()
        gradients.append(model.backbone.blocks[-1].attn.qkv.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_weights_load_strictly_and_are_resized(tmp_path):
    model = build(hivit_config())
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
    own = encoder(img_size=(64, 64))
    report = load_encoder(own, tmp_path / 'model.pth', grid=(4, 6))
    assert report.resized == ['pos_embed'] and not report.missing
    assert torch.equal(own.blocks[0].mlp.fc1.weight, model.backbone.blocks[0].mlp.fc1.weight)
    library = HiViT(arch=dict(ARCH), img_size=32, patch_size=8)
    torch.save(dict(state_dict={f'backbone.{k}': v for k, v in library.state_dict().items()}), tmp_path / 'library.pth')
    report = load_encoder(own, tmp_path / 'library.pth')
    assert report.fresh == ['norm.weight', 'norm.bias'] and not report.missing
    other = BootMAEHiViT(arch=dict(ARCH, embed_dims=64), img_size=(32, 32), patch_size=8)
    with pytest.raises(ConfigError, match='does not fit the encoder'):
        load_encoder(other, tmp_path / 'model.pth')


def test_layers_for_layer_decay():
    own = encoder()
    total = len(own.blocks) + 2
    assert own.get_layer_depth('backbone.pos_embed', 'backbone.') == (0, total)
    assert own.get_layer_depth('backbone.blocks.3.mlp.fc1.bias', 'backbone.') == (4, total)
    assert own.get_layer_depth('decode_head.x', 'backbone.') == (total - 1, total)


def test_frozen_parts():
    own = encoder(frozen_stages=2).train()
    assert not own.blocks[1].training and own.blocks[2].training
    assert not any(p.requires_grad for p in own.blocks[1].parameters())


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(arch='x'), "unknown arch 'x'; valid names: b, base"),
        (dict(arch=dict(ARCH, depths=[1, 1])), 'arch.depths must have at least 3 items'),
        (dict(arch=dict(ARCH, num_heads=3)), 'arch.embed_dims must be divisible by arch.num_heads 3'),
        (dict(patch_size=6), 'patch_size must be a multiple of 4'),
        (dict(img_size=36), 'img_size 36x36 must be divisible by patch_size 8'),
        (dict(out_indices=(3,)), 'out_indices.0 must be less than or equal to 2'),
        (dict(frozen_stages=99), 'frozen_stages must be in -1..13, but is 99'),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ConfigError, match=message):
        encoder(**options)


def test_masks_by_attention_need_a_class_token():
    with pytest.raises(ConfigError, match='masking by attention needs with_cls_token=True'):
        build(hivit_config(masking=dict(type='bootmae_mm.AttentionMasking')))


def backbone_of(tmp_path):
    model = build(hivit_config())
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
    pretrained = dict(type='Pretrained', checkpoint=str(tmp_path / 'model.pth'))
    options = dict(arch=dict(ARCH), img_size=(32, 48), patch_size=8, out_indices=(0, 1, 2), init_cfg=pretrained)
    return model, dict(type='bootmae_mm.BootMAEHiViT', **options)


@pytest.mark.slow
def test_upernet_trains_on_the_maps(tmp_path):
    from mmengine.structures import PixelData
    from mmseg.registry import MODELS
    from mmseg.structures import SegDataSample

    init_default_scope('mmseg')
    cfg = Config.fromfile(ROOT / 'configs/_base_/models/upernet_vitb.py').model
    source, cfg.backbone = backbone_of(tmp_path)
    cfg.neck = None
    norm = dict(type='BN')
    cfg.decode_head.update(in_channels=[8, 16, 32], in_index=[0, 1, 2], channels=8, norm_cfg=norm, num_classes=4)
    cfg.auxiliary_head.update(in_channels=32, in_index=2, channels=8, norm_cfg=norm, num_classes=4)
    model = MODELS.build(cfg)
    model.init_weights()
    assert torch.equal(model.backbone.blocks[-1].attn.qkv.weight, source.backbone.blocks[-1].attn.qkv.weight)
    labels = SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 4, (1, 64, 96))))
    total, log = model.parse_losses(model(torch.randn(2, 3, 64, 96), [labels, labels], mode='loss'))
    total.backward()
    assert 0 < log['decode.loss_ce'] < 5
    assert model.backbone.patch_embed.proj.weight.grad.abs().max() > 0


@pytest.mark.slow
def test_mask_rcnn_trains_on_the_maps(tmp_path):
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    init_default_scope('mmdet')
    cfg = Config.fromfile(ROOT / 'configs/_base_/models/mask_rcnn_vitb.py').model
    source, cfg.backbone = backbone_of(tmp_path)
    cfg.neck = dict(type='FPN', in_channels=[8, 16, 32], out_channels=256, num_outs=5)
    model = MODELS.build(cfg)
    model.init_weights()
    assert torch.equal(model.backbone.blocks[0].mlp.fc1.weight, source.backbone.blocks[0].mlp.fc1.weight)
    shape = (64, 96)
    sample = DetDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, pad_shape=shape, batch_input_shape=shape))
    masks = torch.zeros(1, *shape, dtype=torch.uint8)
    masks[0, 10:50, 10:60] = 1
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[10.0, 10, 60, 50]]), labels=torch.tensor([1]), masks=BitmapMasks(masks.numpy(), *shape)
    )
    total, log = model.parse_losses(model(torch.randn(1, 3, *shape), [sample], mode='loss'))
    total.backward()
    assert log['loss_mask'].isfinite() and model.backbone.patch_embed.proj.weight.grad.abs().max() > 0
