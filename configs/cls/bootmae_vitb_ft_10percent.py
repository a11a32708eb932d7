# Fine-tuning with 10 % of the labels (128 images a class of ImageNet-1K); not run. The recipe is that for all labels.
_base_ = './bootmae_vitb_ft_100e.py'
train_dataloader = dict(dataset=dict(label_share=0.1))
# Too few steps (6,255) for the average of weights, of which the first ones would still make up 29 %.
custom_hooks = []
