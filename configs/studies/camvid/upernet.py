# UperNet on the labeled training frames: crops of 128 px in patches of 8, for one CPU core; mIoU on the test frames.
_base_ = '../../seg/bootmae_vitb_upernet_folder.py'
data_root = 'data/camvid'
crop_size = (128, 128)
num_classes = 11
metainfo = dict(
    classes=('sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign', 'fence', 'car', 'pedestrian', 'bicyclist'),
    palette=[
        [128, 128, 128],
        [128, 0, 0],
        [192, 192, 128],
        [128, 64, 128],
        [60, 40, 222],
        [128, 128, 0],
        [192, 128, 128],
        [64, 64, 128],
        [64, 0, 128],
        [64, 64, 0],
        [0, 128, 192],
    ],
)
iterations = 400
width = 128

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomResize', scale=(240, 180), ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.9),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=8, num_workers=0, persistent_workers=False, timeout=0, dataset=dict(reduce_zero_label=True)
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    timeout=0,
    dataset=dict(reduce_zero_label=True, data_prefix=dict(img_path='images/test', seg_map_path='annotations/test')),
)
test_dataloader = val_dataloader

model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=width, num_layers=6, num_heads=4, feedforward_channels=512),
        img_size=crop_size,
        patch_size=8,
        drop_path_rate=0.0,
        out_indices=(2, 3, 4, 5),
    ),
    neck=dict(embed_dim=width, rescales=[2, 1, 0.5, 0.25]),
    # mmseg initializes the classifier with std 0.01, from which a head this narrow does not learn in time.
    decode_head=dict(
        in_channels=[width] * 4, channels=64, init_cfg=dict(type='Normal', std=0.1, override=dict(name='conv_seg'))
    ),
    auxiliary_head=dict(
        in_channels=width, channels=64, init_cfg=dict(type='Normal', std=0.1, override=dict(name='conv_seg'))
    ),
    test_cfg=dict(_delete_=True, mode='slide', crop_size=crop_size, stride=(52, 56)),
)
# One learning rate for all blocks: a decay over the blocks would hold the run from scratch back.
optim_wrapper = dict(dtype='float32', paramwise_cfg=dict(layer_decay_rate=1.0), optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=50, end=iterations),
]
train_cfg = dict(max_iters=iterations, val_interval=iterations)
default_hooks = dict(checkpoint=dict(interval=iterations))
