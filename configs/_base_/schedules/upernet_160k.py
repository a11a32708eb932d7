# 160k iterations at a batch of 16 = 8 GPUs x 2, bfloat16.
optim_wrapper = dict(
    type='bootmae_mm.AutocastOptimWrapper',
    dtype='bfloat16',
    constructor='bootmae_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.65),
    optimizer=dict(type='AdamW', lr=4e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    clip_grad=dict(max_norm=3, norm_type=2),
)
auto_scale_lr = dict(base_batch_size=16)
param_scheduler = [
    # As in the authors' code (mmcv): the decay starts at iteration 0, and the warm-up of 1,500 iterations is a
    # factor of it. Each ends one iteration later here, because mmengine reaches the last value one step before `end`.
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1501),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=160001),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=16000)
