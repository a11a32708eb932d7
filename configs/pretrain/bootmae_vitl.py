# ViT-L/16. Differs from ViT-B: lr decays to 1e-5 instead of 1e-4, and the teacher's decay stays at 0.9999.
_base_ = './bootmae_vitb.py'

model = dict(backbone=dict(arch='l'))

# 8 GPUs x 128 images x 4 = 4096
train_dataloader = dict(batch_size=128)
optim_wrapper = dict(accumulative_counts=4)
auto_scale_lr = dict(base_batch_size=1024)

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=40, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=True,
        begin=40,
        end=800,
        convert_to_iter_based=True,
    ),
]
# Every 20 epochs: 20 x 1,251 iterations are a multiple of the 4 accumulated ones, so that resuming is exact.
default_hooks = dict(ema=dict(decay=[(0, 0.999), (100, 0.9999)]), checkpoint=dict(interval=20))
