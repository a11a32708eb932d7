# A tiny BootMAE on scenes of digits without labels (tools/make_digit_scenes.py), for `make demo-transfer`.
# Crops of 32 pixels in patches of 4: 64 tokens, 48 masked.
_base_ = './bootmae_vitt_digits.py'
data_root = 'work_dirs/demo-transfer/scenes'
img_size = 32

train_pipeline = [
    dict(type='bootmae_mm.LoadImage'),
    dict(type='RandomCrop', crop_size=32),
    dict(type='bootmae_mm.PackImage'),
]
test_pipeline = [
    dict(type='bootmae_mm.LoadImage'),
    dict(type='CenterCrop', crop_size=32),
    dict(type='bootmae_mm.PackImage'),
]
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='bootmae_mm.ImageFolder',
        data_root=data_root,
        folder='images/training',
        pipeline=train_pipeline,
        masking=dict(img_size=32, patch_size=4, ratio=0.75, strategy='mix', min_block=5, max_block=20),
    )
)
test_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='bootmae_mm.ImageFolder',
        data_root=data_root,
        folder='images/validation',
        pipeline=test_pipeline,
        masking=dict(img_size=32, patch_size=4, ratio=0.75, strategy='mix', min_block=5, max_block=20),
    )
)
model = dict(pixel_head=dict(normalize='channel'))
optim_wrapper = dict(optimizer=dict(lr=2e-3))
default_hooks = dict(ema=dict(decay=[(0, 0.98), (90, 0.999)]))
