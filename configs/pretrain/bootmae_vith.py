# ViT-H/14. Not in the paper and not trained by us; schedule and decay are those of ViT-L.
# FSDP: parameters, gradients and optimizer states are sharded across GPUs.
_base_ = './bootmae_vitl.py'

patch_size = 14
model = dict(backbone=dict(arch='h'))
model_wrapper_cfg = dict(_delete_=True, type='bootmae_mm.FullyShardedDataParallel')

# 8 GPUs x 64 images x 8 = 4096
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(accumulative_counts=8)
auto_scale_lr = dict(base_batch_size=512)
# 40 x 2,502 iterations are a multiple of the 8 accumulated ones, so that resuming is exact.
default_hooks = dict(checkpoint=dict(interval=40))
