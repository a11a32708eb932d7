# Pixels only, in about the time of 8 epochs of the full method.
_base_ = './pixel.py'

train_cfg = dict(max_epochs=18)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=1, end=18, convert_to_iter_based=True),
]
