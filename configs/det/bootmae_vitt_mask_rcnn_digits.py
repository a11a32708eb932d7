# Toy config for two CPU cores: scenes of digits (tools/make_digit_scenes.py), from the demo's checkpoint.
_base_ = './bootmae_vitb_mask_rcnn_1x_coco.py'
data_root = 'work_dirs/demo-transfer-scenes/scenes'
metainfo = dict(classes=tuple('0123456789'))
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=256),
        img_size=64,
        patch_size=4,
        drop_path_rate=0.0,
        out_indices=(0, 1, 2, 3),
        init_cfg=dict(checkpoint='work_dirs/demo/epoch_90.pth'),
    ),
    neck=[
        dict(
            type='mmseg.Feature2Pyramid',
            embed_dim=64,
            # Half the usual resolutions, in a quarter of the time.
            rescales=[2, 1, 0.5, 0.25],
            norm_cfg=dict(type='SyncBN', requires_grad=True),
        ),
        dict(type='FPN', in_channels=[64] * 4, out_channels=32, num_outs=5),
    ],
    # Patches of 4 instead of 16 at half the resolutions: strides are half the usual ones, anchors a quarter.
    rpn_head=dict(in_channels=32, feat_channels=32, anchor_generator=dict(scales=[4], strides=[2, 4, 8, 16, 32])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32, featmap_strides=[2, 4, 8, 16], finest_scale=14),
        bbox_head=dict(in_channels=32, fc_out_channels=128, num_classes=10),
        mask_roi_extractor=dict(out_channels=32, featmap_strides=[2, 4, 8, 16], finest_scale=14),
        mask_head=dict(in_channels=32, conv_out_channels=32, num_classes=10),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100)),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='instances_training.json',
        data_prefix=dict(img='images/training'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='instances_validation.json',
        data_prefix=dict(img='images/validation'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=f'{data_root}/instances_validation.json')
test_evaluator = val_evaluator
optim_wrapper = dict(type='bootmae_mm.AutocastOptimWrapper', dtype='float32', optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=50),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=6, milestones=[4, 5], gamma=0.1),
]
train_cfg = dict(max_epochs=6, val_interval=6)
