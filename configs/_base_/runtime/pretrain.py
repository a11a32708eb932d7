_base_ = './default.py'
default_scope = 'mmpretrain'

default_hooks = dict(
    # Decay of the momentum encoder: 0.999 -> 0.9999 over 100 epochs, then (ViT-B only) -> 0.99999 at epoch 400.
    ema=dict(type='bootmae_mm.BootMAEEMAHook', decay=[(0, 0.999), (100, 0.9999), (400, 0.99999)]),
    # Weight of the feature loss: rises to 1 over the first quarter of the run.
    feature_weight=dict(type='bootmae_mm.FeatureWeightHook', weight=1.0, ramp=0.25),
    runtime_info=dict(type='bootmae_mm.MonitorHook'),
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100),
    progress=dict(type='bootmae_mm.ProgressHook'),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='bootmae_mm.CheckpointHook', interval=10, max_keep_ckpts=3),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    # On SIGTERM or Ctrl-C: save a checkpoint and exit with status 75.
    interruption=dict(type='bootmae_mm.InterruptionHook', grace=120),
    reconstruction=dict(type='bootmae_mm.ReconstructionHook', interval=20, num_images=4),
    # kNN and a linear probe on a folder of labeled images: default_hooks.probe.data_root=/labeled
    probe=dict(type='bootmae_mm.ProbeHook', data_root=None, times=10),
    curves=dict(type='bootmae_mm.CurvesHook'),
    report=dict(type='bootmae_mm.ReportHook'),
    # torch.compile for the blocks of the model: --cfg-options default_hooks.compile.enabled=True
    compile=dict(type='bootmae_mm.CompileHook', enabled=False),
)

# For several processes: gradients are views of the communication buckets. (static_graph=True fails with gradient
# accumulation.)
model_wrapper_cfg = dict(type='MMDistributedDataParallel', broadcast_buffers=False, gradient_as_bucket_view=True)

visualizer = dict(type='Visualizer', vis_backends={{_base_.vis_backends}})
