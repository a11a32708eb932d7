# Fine-tuning with 1 % of the labels (13 images a class of ImageNet-1K, the first ones in a fixed random order). No
# reported result is known here; the recipe is the one for all labels, with as many epochs of fewer images.
_base_ = './bootmae_vitb_ft_100e.py'
train_dataloader = dict(dataset=dict(label_share=0.01))
