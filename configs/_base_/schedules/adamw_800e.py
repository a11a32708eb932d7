# The paper's schedule: 800 epochs of ImageNet-1K at an effective batch of 4096.
# lr = 1.5e-4 * batch / 256 = 1.5e-4 * 4096 / 256 = 2.4e-3.
optim_wrapper = dict(
    type='bootmae_mm.AutocastOptimWrapper',
    dtype='bfloat16',
    # 8 GPUs x 256 images x 2 = 4096
    accumulative_counts=2,
    constructor='bootmae_mm.GroupedOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1.5e-4 * 4096 / 256, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.05, fused=True),
)
# For --auto-scale-lr. mmengine does not count accumulation, so this is 4096 / accumulative_counts.
auto_scale_lr = dict(base_batch_size=2048)

param_scheduler = [
    # Warm up from (almost) zero: mmengine's recursive form divides by start_factor.
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=40, convert_to_iter_based=True),
    # Decays to 1e-4 (ViT-L: 1e-5) at any batch size.
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-4,
        by_epoch=True,
        begin=40,
        end=800,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=800)
