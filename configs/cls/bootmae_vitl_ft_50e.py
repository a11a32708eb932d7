# Fine-tuning of ViT-L/16 on ImageNet-1K. Reported by the paper: 85.9 top-1.
_base_ = './bootmae_vitb_ft_100e.py'
model = dict(
    backbone=dict(arch='l', init_cfg=dict(checkpoint='work_dirs/bootmae_vitl/epoch_800.pth')),
    head=dict(in_channels=1024),
)
# 8 GPUs x 128 = 1024
train_dataloader = dict(batch_size=128)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.75), optimizer=dict(lr=1.5e-3))
auto_scale_lr = dict(base_batch_size=1024)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-6 / 1.5e-3,
        by_epoch=True,
        begin=5,
        end=50,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=50)
