# The full method on CIFAR-10 for one CPU core: 32 px, patches of 4, 48 of 8 x 8 patches masked.
#   python tools/train.py configs/studies/cifar10/full.py --cfg-options data_root=/path/to/cifar10
_base_ = [
    '../../_base_/models/bootmae_vitb.py',
    '../../_base_/datasets/imagenet.py',
    '../../_base_/runtime/pretrain.py',
]
data_root = 'data/cifar10'
img_size = 32
patch_size = 4

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=128, num_layers=6, num_heads=4, feedforward_channels=512),
        img_size=img_size,
        patch_size=patch_size,
    ),
    neck=dict(pixel=dict(width=96, depth=1), feature=dict(depth=1)),
)

train_pipeline = [
    dict(type='bootmae_mm.LoadImage', crop_size=img_size),
    dict(type='bootmae_mm.RandomResizedCrop', scale=img_size, crop_ratio_range=(0.2, 1.0)),
    dict(type='bootmae_mm.RandomFlip', prob=0.5),
    dict(type='bootmae_mm.PackImage'),
]
test_pipeline = [dict(type='bootmae_mm.LoadImage'), dict(type='bootmae_mm.PackImage')]
# Blocks cover the same shares of the grid as 16 to 60 patches of 14 x 14.
masking = dict(img_size=img_size, patch_size=patch_size, ratio=0.75, strategy='mix', min_block=5, max_block=20)
train_dataloader = dict(
    num_workers=0,
    timeout=0,
    batch_size=128,
    dataset=dict(data_root=data_root, pipeline=train_pipeline, masking=masking),
)
test_dataloader = dict(
    num_workers=0,
    timeout=0,
    batch_size=250,
    dataset=dict(data_root=data_root, folder='test', pipeline=test_pipeline, masking=masking),
)

optim_wrapper = dict(
    type='OptimWrapper',
    constructor='bootmae_mm.GroupedOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.05, fused=True),
)
train_cfg = dict(by_epoch=True, max_epochs=8)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=1, end=8, convert_to_iter_based=True),
]
default_hooks = dict(
    ema=dict(decay=[(0, 0.99), (8, 0.999)]),
    logger=dict(interval=50),
    checkpoint=dict(interval=1, max_keep_ckpts=1),
    reconstruction=dict(interval=8),
)
