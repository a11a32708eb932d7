# All images below data_root/train, without labels. Evaluation: the same losses on data_root/val.
data_root = 'data/imagenet'
# Stated once: crop, mask and backbone follow. Both may be overridden alone, in a child config or as --cfg-options
# img_size=192. img_size is a number, or height and width.
img_size = 224
patch_size = 16
# Above 8 bits, value_range are the values that become 0 and 255 (see LoadImage); mean and std are on that scale.
# `bootmae stats FOLDER` measures all of them.
channels = 3
value_range = None
bands = None
mean = [127.5] * channels
std = [127.5] * channels
height, width = (img_size, img_size) if isinstance(img_size, int) else img_size

train_pipeline = [
    dict(type='bootmae_mm.LoadImage', crop_size=img_size, channels=channels, value_range=value_range, bands=bands),
    # For exactly the pixels of Pillow: backend='pillow', here and in LoadImage.
    dict(type='bootmae_mm.RandomResizedCrop', scale=img_size, crop_ratio_range=(0.2, 1.0)),
    # Drawn here, applied on the device.
    dict(type='bootmae_mm.RandomFlip', prob=0.5),
    dict(type='bootmae_mm.PackImage'),
]
test_pipeline = [
    dict(type='bootmae_mm.LoadImage', crop_size=img_size, channels=channels, value_range=value_range, bands=bands),
    dict(
        type='bootmae_mm.ResizeEdge',
        scale=round(min(height, width) / 0.875),
        edge='short',
        backend='pillow',
        interpolation='bicubic',
    ),
    dict(type='CenterCrop', crop_size=(width, height)),
    dict(type='bootmae_mm.PackImage'),
]

# 147 of 14 x 14 patches are masked: 120 in blocks (num_blocked; the same share of any other grid), the rest at random.
masking = dict(img_size=img_size, patch_size=patch_size, ratio=0.75, strategy='mix', min_block=16, max_block=60)

train_dataloader = dict(
    batch_size=256,
    num_workers=12,
    timeout=600,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type='bootmae_mm.SeededSampler', shuffle=True),
    collate_fn=dict(type='bootmae_mm.collate'),
    dataset=dict(
        type='bootmae_mm.ImageFolder', data_root=data_root, folder='train', pipeline=train_pipeline, masking=masking
    ),
)
test_dataloader = dict(
    batch_size=256,
    num_workers=12,
    timeout=600,
    sampler=dict(type='bootmae_mm.SeededSampler', shuffle=False),
    collate_fn=dict(type='bootmae_mm.collate'),
    dataset=dict(
        type='bootmae_mm.ImageFolder', data_root=data_root, folder='val', pipeline=test_pipeline, masking=masking
    ),
)
test_evaluator = dict(type='bootmae_mm.PretrainLoss')
test_cfg = dict()
