# ViT-H/14, which the paper does not have: never trained by us, schedule and decay are those of ViT-L.
# Every GPU keeps a share of each block, of its gradients and of the optimizer's state (FSDP).
_base_ = './bootmae_vitl.py'

model = dict(backbone=dict(arch='h', patch_size=14))
model_wrapper_cfg = dict(_delete_=True, type='bootmae_mm.FullyShardedDataParallel')

# 8 GPUs x 64 images x 8 = 4096
train_dataloader = dict(batch_size=64, dataset=dict(masking=dict(grid_size=16)))
optim_wrapper = dict(accumulative_counts=8)
auto_scale_lr = dict(base_batch_size=512)
# 40 x 2,502 iterations are a multiple of the 8 that are accumulated, so that resuming is exact.
default_hooks = dict(checkpoint=dict(interval=40))
