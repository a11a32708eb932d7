# Linear probe of ViT-L/16: block 18 of 24. Reported by the paper: 77.1 top-1.
_base_ = './bootmae_vitb_linear_90e.py'
model = dict(
    backbone=dict(
        arch='l', out_indices=17, frozen_stages=24, init_cfg=dict(checkpoint='work_dirs/bootmae_vitl/epoch_800.pth')
    ),
    neck=dict(input_features=1024),
    head=dict(in_channels=1024),
)
optim_wrapper = dict(optimizer=dict(lr=0.07 * 16384 / 256))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=10, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=10, end=50, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=50)
