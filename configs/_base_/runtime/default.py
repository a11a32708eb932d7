# Settings that all runs share.
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    # Without GPUs the tools use gloo instead. timeout: seconds to wait for another process before giving up.
    dist_cfg=dict(backend='nccl', timeout=1800),
    # Threads of torch on a CPU; None: its own default, the number of cores.
    num_threads=None,
)
vis_backends = [dict(type='bootmae_mm.LocalVisBackend'), dict(type='bootmae_mm.TensorboardVisBackend')]
log_level = 'INFO'
# Weights of an encoder to start from, of any origin (docs/own_images.md); load_from is for a whole model.
init = None
load_from = None
resume = False
# A fixed seed, so that a run can be repeated and resumed exactly.
randomness = dict(seed=0)
