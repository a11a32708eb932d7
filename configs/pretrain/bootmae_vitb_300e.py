# 300 epochs. The warm-up of 40 epochs is our choice: the paper reports 800 epochs only.
_base_ = './bootmae_vitb.py'

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=40, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-4,
        by_epoch=True,
        begin=40,
        end=300,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=300)
# The decay schedule of 800 epochs, cut at the end of this run.
default_hooks = dict(ema=dict(decay=[(0, 0.999), (100, 0.9999), (300, 0.99996)]))
