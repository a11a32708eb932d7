# Fine-tuning on ImageNet-1K at an effective batch of 2048 = 8 GPUs x 256.
optim_wrapper = dict(
    type='bootmae_mm.AutocastOptimWrapper',
    dtype='bfloat16',
    constructor='bootmae_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.6),
    optimizer=dict(type='AdamW', lr=5e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
)
auto_scale_lr = dict(base_batch_size=2048)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    # Decays to 1e-6; given as a share of the peak, so that layer decay scales both.
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-6 / 5e-3,
        by_epoch=True,
        begin=20,
        end=100,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=1)
# The averaged weights are evaluated. mmengine's momentum is the weight of the new value: 1 - 0.9998.
custom_hooks = [dict(type='EMAHook', momentum=2e-4, priority='ABOVE_NORMAL')]
