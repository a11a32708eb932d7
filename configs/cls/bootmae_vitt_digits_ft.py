# Toy config for two CPU cores: single digits cut out of scenes (tools/make_digit_scenes.py), from the demo's
# checkpoint.
_base_ = './bootmae_vitb_ft_100e.py'
data_root = 'work_dirs/demo-transfer-scenes/scenes'
img_size = 16
model = dict(
    data_preprocessor=dict(num_classes=10),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=256),
        img_size=img_size,
        patch_size=4,
        drop_path_rate=0.0,
        init_cfg=dict(checkpoint='work_dirs/demo/epoch_90.pth'),
    ),
    head=dict(num_classes=10, in_channels=64),
    # No Mixup, CutMix or flips: the result would not be a digit.
    train_cfg=None,
)
pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=img_size), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    dataset=dict(data_root=data_root, data_prefix='digits/training', pipeline=pipeline),
)
val_dataloader = dict(
    num_workers=1,
    dataset=dict(data_root=data_root, data_prefix='digits/validation', pipeline=pipeline),
)
test_dataloader = val_dataloader
optim_wrapper = dict(dtype='float32', optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=2, end=15, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=15, val_interval=5)
# Too short for weight averaging.
custom_hooks = []
