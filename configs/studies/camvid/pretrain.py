# The training frames without their labels: crops of 64 px in patches of 8, 48 of 8 x 8 patches masked, one CPU core.
_base_ = '../cifar10/full.py'
data_root = 'data/camvid'
img_size = 64
patch_size = 8

test_pipeline = [
    dict(type='bootmae_mm.LoadImage'),
    dict(type='bootmae_mm.ResizeEdge', scale=img_size, edge='short', interpolation='bicubic', backend='pillow'),
    dict(type='CenterCrop', crop_size=(img_size, img_size)),
    dict(type='bootmae_mm.PackImage'),
]
train_dataloader = dict(batch_size=64, dataset=dict(folder='images/training'))
test_dataloader = dict(batch_size=101, dataset=dict(folder='images/validation', pipeline=test_pipeline))
train_cfg = dict(max_epochs=300)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=30, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=30, end=300, convert_to_iter_based=True),
]
default_hooks = dict(
    ema=dict(decay=[(0, 0.99), (300, 0.999)]),
    checkpoint=dict(interval=50),
    reconstruction=dict(interval=300),
)
