# Fine-tuning with 1 % of the labels (13 images per class of ImageNet-1K, the first in a fixed random order). We know of
# no reported result. Not run. The recipe for all labels at a smaller batch: 100 epochs are 2,500 steps instead of 600.
_base_ = './bootmae_vitb_ft_100e.py'
# 8 GPUs x 64 = 512
train_dataloader = dict(batch_size=64, dataset=dict(label_share=0.01))
# Scaled with the batch: 5e-3 * 512 / 2048.
optim_wrapper = dict(optimizer=dict(lr=1.25e-3))
auto_scale_lr = dict(base_batch_size=512)
# No weight averaging: over 2,500 steps the average would consist mostly of the initial weights.
custom_hooks = []
