# UperNet on frames of half the size in patches of 4, from an encoder of 32 px in patches of 4 that saw CIFAR-10:
#   python tools/train.py configs/studies/camvid/upernet_half.py \
#       --cfg-options data_root=/path/to/camvid model.backbone.init_cfg.checkpoint=weights/bootmae_cifar10
_base_ = './upernet.py'
crop_size = (64, 64)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomResize', scale=(120, 90), ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.9),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(120, 90), keep_ratio=True),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
# A crop is 2 x 2 images of pretraining, also for the position embedding.
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(img_size=crop_size, patch_size=4, pos_embed_tile=8),
    test_cfg=dict(crop_size=crop_size, stride=(26, 28)),
)
