# Toy config for two CPU cores: the digits of ten forms (tools/make_digit_scenes.py --kind forms), from the demo's
# checkpoint.
_base_ = './bootmae_vitt_digits_ft.py'
data_root = 'work_dirs/demo-transfer/forms'
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=10, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=10, end=150, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=150, val_interval=150)
default_hooks = dict(checkpoint=dict(interval=150))
