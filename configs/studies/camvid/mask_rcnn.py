# Mask R-CNN on the training frames: cars, pedestrians and bicyclists of tools/make_instances.py, for one CPU core; box
# and mask AP on the test frames.
_base_ = '../../det/bootmae_vitt_mask_rcnn_digits.py'
data_root = 'data/camvid'
metainfo = dict(classes=('car', 'pedestrian', 'bicyclist'))
size = (240, 180)
width = 128

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=width, num_layers=6, num_heads=4, feedforward_channels=512),
        img_size=(192, 256),
        patch_size=8,
        out_indices=(2, 3, 4, 5),
    ),
    neck=[
        dict(
            type='mmseg.Feature2Pyramid',
            embed_dim=width,
            rescales=[2, 1, 0.5, 0.25],
            norm_cfg=dict(type='SyncBN', requires_grad=True),
        ),
        dict(type='FPN', in_channels=[width] * 4, out_channels=32, num_outs=5),
    ],
    rpn_head=dict(anchor_generator=dict(scales=[3], strides=[4, 8, 16, 32, 64])),
    roi_head=dict(
        bbox_roi_extractor=dict(featmap_strides=[4, 8, 16, 32]),
        bbox_head=dict(num_classes=3),
        mask_roi_extractor=dict(featmap_strides=[4, 8, 16, 32]),
        mask_head=dict(num_classes=3),
    ),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=size, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    timeout=0,
    dataset=dict(metainfo=metainfo, data_root=data_root, pipeline=train_pipeline),
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    timeout=0,
    dataset=dict(
        metainfo=metainfo,
        data_root=data_root,
        ann_file='instances_test.json',
        data_prefix=dict(img='images/test'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=f'{data_root}/instances_test.json')
test_evaluator = val_evaluator
# One learning rate for all blocks: a decay over the blocks would hold the run from scratch back.
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=1.0))
train_cfg = dict(max_epochs=8, val_interval=8)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=50),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=8, milestones=[6, 7], gamma=0.1),
]
