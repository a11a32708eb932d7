"""The feature pyramid: every level by hand, and in a segmentor of mmseg."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, init_default_scope

from bootmae_mm.models import BootMAEViT, SimpleFeaturePyramid
from bootmae_mm.validation import ConfigError


def test_every_level_by_hand():
    neck = SimpleFeaturePyramid(in_channels=16, out_channels=8)
    for parameter in neck.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 16, 6, 4)
    outs = neck([torch.zeros(2, 16, 6, 4), x])  # only the last map counts

    def norm(x, module):
        return F.layer_norm(x.permute(0, 2, 3, 1), module.weight.shape, module.weight, module.bias, 1e-6).permute(
            0, 3, 1, 2
        )

    def tail(x, layers):
        x = norm(F.conv2d(x, layers[0].weight), layers[1])
        return norm(F.conv2d(x, layers[2].weight, padding=1), layers[3])

    four, two, one, half = neck.levels
    up = norm(F.conv_transpose2d(x, four[0].weight, four[0].bias, stride=2), four[1])
    up = F.conv_transpose2d(F.gelu(up), four[3].weight, four[3].bias, stride=2)
    wanted = [
        tail(up, four[4:]),
        tail(F.conv_transpose2d(x, two[0].weight, two[0].bias, stride=2), two[1:]),
        tail(x, one),
        tail(F.max_pool2d(x, 2), half[1:]),
    ]
    wanted.append(wanted[-1][:, :, ::2, ::2])
    assert [tuple(out.shape) for out in outs] == [
        (2, 8, 24, 16),
        (2, 8, 12, 8),
        (2, 8, 6, 4),
        (2, 8, 3, 2),
        (2, 8, 2, 1),
    ]
    for found, level in zip(outs, wanted, strict=True):
        torch.testing.assert_close(found, level, rtol=1e-4, atol=1e-5)


def test_a_single_map_of_one_patch():
    outs = SimpleFeaturePyramid(in_channels=8, out_channels=4, num_outs=4)(torch.randn(1, 8, 1, 1))
    assert [out.shape[2] for out in outs] == [4, 2, 1, 1]


def test_in_a_segmentor():
    init_default_scope('mmseg')
    norm_cfg = dict(type='BN')
    backbone = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=48)
    model = MODELS.build(
        dict(
            type='EncoderDecoder',
            backbone=dict(type='bootmae_mm.BootMAEViT', arch=backbone, img_size=32, patch_size=8, out_type='featmap'),
            neck=dict(type='bootmae_mm.SimpleFeaturePyramid', in_channels=24, out_channels=8, num_outs=4),
            decode_head=dict(
                type='UPerHead',
                in_channels=[8] * 4,
                in_index=[0, 1, 2, 3],
                channels=8,
                num_classes=5,
                norm_cfg=norm_cfg,
                loss_decode=dict(type='CrossEntropyLoss'),
            ),
            test_cfg=dict(mode='whole'),
        )
    ).eval()
    assert [map_.shape[2] for map_ in model.extract_feat(torch.randn(1, 3, 32, 32))] == [16, 8, 4, 2]
    assert model.encode_decode(torch.randn(2, 3, 32, 32), [dict(img_shape=(32, 32))] * 2).shape == (2, 5, 32, 32)


def test_every_weight_gets_a_gradient():
    neck = SimpleFeaturePyramid(in_channels=8, out_channels=4)
    sum(out.square().sum() for out in neck(torch.randn(1, 8, 4, 4))).backward()
    assert all(parameter.grad is not None for parameter in neck.parameters())


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(scales=(3,)), r'scales must be 4, 2, 1 or 0.5, .*but are .*3'),
        (dict(num_outs=3), 'scales must be .*at most num_outs 3 of them'),
        (dict(scales=()), r'scales must be .*but are \(\)'),
        (dict(scales='4'), 'scales'),
        (dict(num_outs=0), 'num_outs must be greater than or equal to 1, but is 0'),
        (dict(out_channels=0), 'out_channels must be greater than or equal to 1, but is 0'),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ConfigError, match=message):
        SimpleFeaturePyramid(in_channels=8, **options)


@pytest.mark.parametrize('out_type', ['featmap_cls_token', 'raw', 'cls_token'])
def test_other_outputs_of_the_backbone_are_refused(out_type):
    arch = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=48)
    outs = BootMAEViT(arch=arch, img_size=32, patch_size=8, out_type=out_type)(torch.randn(1, 3, 32, 32))
    with pytest.raises(ConfigError, match="^SimpleFeaturePyramid needs feature maps: set out_type='featmap' in the"):
        SimpleFeaturePyramid(in_channels=24)(outs)
