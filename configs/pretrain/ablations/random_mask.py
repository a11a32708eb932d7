# Random masks: 147 of 196 patches, no blocks.
_base_ = '../bootmae_vitb.py'

train_dataloader = dict(dataset=dict(masking=dict(strategy='random')))
