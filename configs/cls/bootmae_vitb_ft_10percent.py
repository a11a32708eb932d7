# Fine-tuning with 10 % of the labels (128 images per class of ImageNet-1K), by the recipe for all labels. Not run.
_base_ = './bootmae_vitb_ft_100e.py'
train_dataloader = dict(dataset=dict(label_share=0.1))
# No weight averaging: over 6,255 steps the initial weights would still make up 29 % of the average.
custom_hooks = []
