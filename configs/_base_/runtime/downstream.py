# Settings that classification, segmentation and detection share.
_base_ = './default.py'
default_hooks = dict(
    # Stops the run at a loss or gradient that is not finite.
    runtime_info=dict(type='bootmae_mm.MonitorHook'),
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    progress=dict(type='bootmae_mm.ProgressHook'),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='bootmae_mm.CheckpointHook', interval=1, max_keep_ckpts=3),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    # On SIGTERM or Ctrl-C: save a checkpoint and exit with status 75.
    interruption=dict(type='bootmae_mm.InterruptionHook', grace=120),
)
val_cfg = dict()
test_cfg = dict()
