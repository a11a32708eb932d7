# Schedule of ViTDet: 100 epochs at a batch of 64 = 8 GPUs x 4 x 2, float16 (see mask_rcnn_1x.py).
optim_wrapper = dict(
    type='AmpOptimWrapper',
    accumulative_counts=2,
    constructor='bootmae_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.7),
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1),
)
# mmengine does not count accumulation.
auto_scale_lr = dict(base_batch_size=32)
param_scheduler = [
    # 250 steps of 2 iterations.
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=100, milestones=[89, 96], gamma=0.1),
]
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=5)
