# All masked patches in blocks.
_base_ = '../bootmae_vitb.py'

train_dataloader = dict(dataset=dict(masking=dict(strategy='block')))
