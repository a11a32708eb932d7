# The demo (`make demo`): a tiny BootMAE on scikit-learn's digits, three minutes on two CPU cores.
# 16x16 pixels in patches of 4: 16 tokens, 8 masked. Targets are not normalized: flat patches have a std of zero.
_base_ = ['../_base_/models/bootmae_vitb.py', '../_base_/runtime/pretrain.py']

img_size = 16
patch_size = 4

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=256),
        img_size=img_size,
        patch_size=patch_size,
    ),
    neck=dict(pixel=dict(width=48)),
    pixel_head=dict(normalize='none'),
)

# Shifts by one pixel; no flips, as a mirrored digit is not a digit.
train_pipeline = [
    dict(type='bootmae_mm.RandomShift', most=1),
    dict(type='bootmae_mm.PackImage'),
]
masking = dict(img_size=img_size, patch_size=patch_size, ratio=0.5, strategy='random')
train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='bootmae_mm.SeededSampler', shuffle=True),
    collate_fn=dict(type='bootmae_mm.collate'),
    dataset=dict(type='bootmae_mm.Digits', split='train', img_size=img_size, pipeline=train_pipeline, masking=masking),
)
test_dataloader = dict(
    batch_size=250,
    num_workers=1,
    sampler=dict(type='bootmae_mm.SeededSampler', shuffle=False),
    collate_fn=dict(type='bootmae_mm.collate'),
    dataset=dict(
        type='bootmae_mm.Digits',
        split='test',
        img_size=img_size,
        pipeline=[dict(type='bootmae_mm.PackImage')],
        masking=masking,
    ),
)
test_evaluator = dict(type='bootmae_mm.PretrainLoss')
test_cfg = dict()

optim_wrapper = dict(
    type='OptimWrapper',
    constructor='bootmae_mm.GroupedOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=4e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.05, fused=True),
)
train_cfg = dict(by_epoch=True, max_epochs=90)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=0, by_epoch=True, begin=2.5, end=90, convert_to_iter_based=True),
]
default_hooks = dict(
    ema=dict(decay=[(0, 0.98), (90, 0.999)]),
    feature_weight=dict(weight=0.5, ramp=0.25),
    logger=dict(interval=20),
    checkpoint=dict(interval=90, max_keep_ckpts=1),
    reconstruction=dict(interval=30, num_images=6),
)
