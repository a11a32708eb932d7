# CMAE: pixels, and the contrast of an image with a shifted view of it, which the momentum encoder sees. To contrast
# beside the features of BootMAE, drop the lines with None.
_base_ = './bootmae_vitb.py'

img_size = 224
height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
train_pipeline = [
    dict(type='bootmae_mm.LoadImage', crop_size=img_size),
    # 31 pixels more, by which the second view may be shifted.
    dict(type='bootmae_mm.RandomResizedCrop', scale=(height + 31, width + 31), crop_ratio_range=(0.2, 1.0)),
    dict(
        type='bootmae_mm.ShiftedView',
        size=img_size,
        transforms=[
            dict(
                type='RandomApply',
                transforms=dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
                prob=0.8,
            ),
            dict(type='RandomGrayscale', prob=0.2, keep_channels=True, channel_weights=(0.2989, 0.587, 0.114)),
            dict(type='GaussianBlur', magnitude_range=(0.1, 2.0), magnitude_std='inf', prob=0.5),
        ],
    ),
    dict(type='bootmae_mm.RandomFlip', prob=0.5),
    dict(type='bootmae_mm.PackImage'),
]
test_pipeline = [
    dict(type='bootmae_mm.LoadImage', crop_size=img_size),
    dict(
        type='bootmae_mm.ResizeEdge',
        scale=round(min(height, width) / 0.875),
        edge='short',
        backend='pillow',
        interpolation='bicubic',
    ),
    dict(type='CenterCrop', crop_size=(width, height)),
    dict(type='bootmae_mm.ShiftedView', size=img_size),
    dict(type='bootmae_mm.PackImage'),
]
model = dict(
    neck=dict(
        feature=None,
        contrast=dict(depth=2),
    ),
    feature_head=None,
    contrast_head=dict(type='bootmae_mm.ContrastiveHead', norm_cfg=dict(type='SyncBN')),
)
default_hooks = dict(ema=dict(decay=[(0, 0.996)]))
