# Fine-tuning with 1 % of the labels (13 images a class of ImageNet-1K, the first ones in a fixed random order). No
# reported result is known here; not run. The recipe is the one for all labels at a smaller batch, so that 100 epochs
# are 2,500 steps and not 600.
_base_ = './bootmae_vitb_ft_100e.py'
# 8 GPUs x 64 = 512
train_dataloader = dict(batch_size=64, dataset=dict(label_share=0.01))
# 5e-3 * 512 / 2048, scaled down with the batch.
optim_wrapper = dict(optimizer=dict(lr=1.25e-3))
auto_scale_lr = dict(base_batch_size=512)
# Too few steps for the average of weights, which would still be made of the first ones for the most part.
custom_hooks = []
