# Images below data_root/train, at any depth; labels are not read. Evaluation: the same losses on data_root/val.
data_root = 'data/imagenet'

train_pipeline = [
    dict(type='bootmae_mm.LoadRGB', crop_size=224),
    # The exact bytes of Pillow: backend='pillow' here and in LoadRGB.
    dict(type='bootmae_mm.RandomResizedCrop', scale=224, crop_ratio_range=(0.2, 1.0)),
    # Drawn here, done on the device.
    dict(type='bootmae_mm.RandomFlip', prob=0.5),
    dict(type='bootmae_mm.PackImage'),
]
test_pipeline = [
    dict(type='bootmae_mm.LoadRGB', crop_size=224),
    dict(type='ResizeEdge', scale=256, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='bootmae_mm.PackImage'),
]

# 147 of 14 x 14 patches: a block mask of 120 of them (num_blocked, by default that share of any grid), topped up with
# random ones.
masking = dict(grid_size=14, ratio=0.75, strategy='mix', min_block=16, max_block=60)

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
