# What every run shares.
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    # On a machine without GPUs the tools use gloo instead.
    # A process that waits longer than so many seconds for another one ends.
    dist_cfg=dict(backend='nccl', timeout=1800),
)
vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
log_level = 'INFO'
load_from = None
resume = False
# Fixed, so that a run can be repeated and resumed exactly.
randomness = dict(seed=0)
