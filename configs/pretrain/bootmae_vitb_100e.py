# 100 epochs. The warm-up of 20 epochs is our choice: the paper reports 800 epochs only.
_base_ = './bootmae_vitb.py'

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-4,
        by_epoch=True,
        begin=20,
        end=100,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=100)
# The decay schedule of 800 epochs, cut at the end of this run.
default_hooks = dict(ema=dict(decay=[(0, 0.999), (100, 0.9999)]))
