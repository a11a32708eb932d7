# Linear probe at an effective batch of 16384 = 8 GPUs x 1024 x 2; lr = 0.1 * 16384 / 256.
optim_wrapper = dict(
    type='bootmae_mm.AutocastOptimWrapper',
    dtype='bfloat16',
    accumulative_counts=2,
    optimizer=dict(type='LARS', lr=0.1 * 16384 / 256, weight_decay=0.0, momentum=0.9),
    # As in LARS, biases are excluded from trust-ratio scaling.
    paramwise_cfg=dict(custom_keys={'head.fc.bias': dict(lars_exclude=True)}),
)
# mmengine does not count accumulation.
auto_scale_lr = dict(base_batch_size=8192)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=10, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=10, end=90, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=90, val_interval=1)
