# Linear probe of ViT-B/16: block 10 of 12, frozen; mean of the patch tokens, LayerNorm, BatchNorm without affine
# parameters, linear. Reported by the paper: 66.1 top-1.
_base_ = [
    '../_base_/models/classifier_vitb.py',
    '../_base_/datasets/imagenet_cls.py',
    '../_base_/schedules/linear_90e.py',
    '../_base_/runtime/cls.py',
]
img_size = {{_base_.img_size}}
model = dict(
    backbone=dict(img_size=img_size, out_indices=9, frozen_stages=12, drop_path_rate=0.0),
    neck=dict(type='ClsBatchNormNeck', input_features=768),
    head=dict(
        loss=dict(_delete_=True, type='CrossEntropyLoss'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.01),
    ),
    train_cfg=None,
)
# The crop of MAE's linear probe: drawn once, and cut to the image where it does not fit.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='bootmae_mm.RandomResizedCrop', scale=img_size, backend='pillow', interpolation='bicubic', retry=False),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=1024, dataset=dict(pipeline=train_pipeline))
