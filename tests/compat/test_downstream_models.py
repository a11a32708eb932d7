"""Mask R-CNN and UperNet train and predict without compiled operators."""

from pathlib import Path

import pytest
import torch
from mmengine import Config, ConfigDict
from mmengine.registry import init_default_scope


def packaged(package, path):
    """A config that comes with a package of OpenMMLab."""
    module = __import__(package)
    return Config.fromfile(Path(module.__file__).parent / '.mim/configs' / path)


@pytest.mark.slow
def test_mask_rcnn_trains_and_predicts():
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    init_default_scope('mmdet')
    cfg = packaged('mmdet', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py').model
    cfg.backbone.init_cfg = None
    cfg.rpn_head.anchor_generator.scales = [2]
    model = MODELS.build(cfg)
    sample = DetDataSample(
        metainfo=dict(
            img_shape=(96, 128),
            ori_shape=(96, 128),
            pad_shape=(96, 128),
            scale_factor=(1, 1),
            batch_input_shape=(96, 128),
        )
    )
    masks = torch.zeros(2, 96, 128, dtype=torch.uint8)
    masks[0, 10:50, 10:60] = masks[1, 40:90, 70:120] = 1
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[10.0, 10, 60, 50], [70, 40, 120, 90]]),
        labels=torch.tensor([1, 2]),
        masks=BitmapMasks(masks.numpy(), 96, 128),
    )
    images = torch.randn(1, 3, 96, 128)
    losses = model(images, [sample], mode='loss')
    total, log = model.parse_losses(losses)
    total.backward()
    assert log['loss_mask'].isfinite() and log['loss_mask'] > 0
    assert model.roi_head.mask_head.convs[0].conv.weight.grad.abs().max() > 0
    assert model.backbone.layer4[0].conv1.weight.grad.abs().max() > 0  # through roi_align's backward
    model.eval()
    with torch.no_grad():
        result = model(images, [sample], mode='predict')[0].pred_instances
    assert result.masks.shape[1:] == (96, 128) and len(result.bboxes) == len(result.scores)


@pytest.mark.slow
def test_upernet_trains_and_predicts():
    from mmengine.structures import PixelData
    from mmseg.registry import MODELS
    from mmseg.structures import SegDataSample

    init_default_scope('mmseg')
    norm = dict(type='BN', requires_grad=True)
    head = dict(in_index=[0, 1, 2, 3], channels=16, num_classes=4, norm_cfg=norm, align_corners=False)
    model = MODELS.build(
        ConfigDict(
            type='EncoderDecoder',
            backbone=dict(type='ResNetV1c', depth=18, norm_cfg=norm, out_indices=(0, 1, 2, 3), norm_eval=False),
            decode_head=dict(type='UPerHead', in_channels=[64, 128, 256, 512], pool_scales=(1, 2), **head),
            train_cfg=dict(),
            test_cfg=dict(mode='whole'),
        )
    )
    sample = SegDataSample(metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64), pad_shape=(64, 64)))
    sample.gt_sem_seg = PixelData(data=torch.randint(0, 4, (1, 64, 64)))
    images = torch.randn(2, 3, 64, 64)
    total, _ = model.parse_losses(model(images, [sample, sample], mode='loss'))
    total.backward()
    assert model.backbone.stem[0].weight.grad.abs().max() > 0
    model.eval()
    with torch.no_grad():
        result = model(images, [sample, sample], mode='predict')
    assert result[0].pred_sem_seg.data.shape == (1, 64, 64)
