# A tiny BootMAE on scenes of digits without labels (tools/make_digit_scenes.py): crops of 32 pixels in patches of 4.
_base_ = './bootmae_vitt_digits.py'
data_root = 'data/digit_scenes'
img_size = 32

train_pipeline = [
    dict(type='bootmae_mm.LoadImage'),
    dict(type='RandomCrop', crop_size=img_size),
    dict(type='bootmae_mm.PackImage'),
]
test_pipeline = [
    dict(type='bootmae_mm.LoadImage'),
    dict(type='CenterCrop', crop_size=img_size),
    dict(type='bootmae_mm.PackImage'),
]
masking = dict(ratio=0.75, strategy='mix', min_block=5, max_block=20)
images = dict(_delete_=True, type='bootmae_mm.ImageFolder', data_root=data_root, masking={{_base_.masking}})
train_dataloader = dict(dataset=dict(folder='images/training', pipeline=train_pipeline, **images))
test_dataloader = dict(dataset=dict(folder='images/validation', pipeline=test_pipeline, **images))
model = dict(pixel_head=dict(normalize='channel'))
optim_wrapper = dict(optimizer=dict(lr=2e-3))
