# Toy config for two CPU cores: scenes of digits (tools/make_digit_scenes.py), from the demo's checkpoint.
_base_ = './bootmae_vitb_upernet_ade20k.py'
data_root = 'work_dirs/demo-transfer-scenes/scenes'
crop_size = (64, 64)
metainfo = dict(
    classes=('background', *'0123456789'),
    palette=[
        [40, 40, 40],
        [230, 25, 75],
        [60, 180, 75],
        [255, 225, 25],
        [0, 130, 200],
        [245, 130, 48],
        [145, 30, 180],
        [70, 240, 240],
        [240, 50, 230],
        [210, 245, 60],
        [250, 190, 212],
    ],
)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=256),
        img_size=crop_size,
        patch_size=4,
        drop_path_rate=0.0,
        out_indices=(0, 1, 2, 3),
        init_cfg=dict(checkpoint='work_dirs/demo/epoch_90.pth'),
    ),
    # Half the usual resolutions, in a quarter of the time.
    neck=dict(embed_dim=64, rescales=[2, 1, 0.5, 0.25]),
    # mmseg initializes the classifier with std 0.01, from which a head this narrow does not learn in time.
    decode_head=dict(
        in_channels=[64] * 4,
        channels=48,
        num_classes=11,
        init_cfg=dict(type='Normal', std=0.1, override=dict(name='conv_seg')),
    ),
    auxiliary_head=dict(
        in_channels=64,
        channels=48,
        num_classes=11,
        init_cfg=dict(type='Normal', std=0.1, override=dict(name='conv_seg')),
    ),
    test_cfg=dict(_delete_=True, mode='whole'),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
dataset = dict(type='BaseSegDataset', data_root=data_root, img_suffix='.png', reduce_zero_label=True, metainfo=metainfo)
train_dataloader = dict(batch_size=8, num_workers=1, dataset=dict(pipeline=train_pipeline, **dataset))
val_dataloader = dict(num_workers=1, dataset=dict(pipeline=test_pipeline, **dataset))
test_dataloader = val_dataloader
optim_wrapper = dict(dtype='float32', optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=50, end=800),
]
train_cfg = dict(max_iters=800, val_interval=800)
default_hooks = dict(checkpoint=dict(interval=800))
