# Toy config for two CPU cores: ten forms of digits (make_digit_scenes.py --kind forms), from the demo's checkpoint.
_base_ = './bootmae_vitt_upernet_digits.py'
data_root = 'work_dirs/demo-transfer/forms'
# A form is 4 x 4 images of the demo, of 4 x 4 patches each, also for the position embedding.
model = dict(backbone=dict(pos_embed_tile=4))
dataset = dict(data_root=data_root)
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=50, end=300),
]
train_cfg = dict(max_iters=300, val_interval=300)
default_hooks = dict(checkpoint=dict(interval=300))
