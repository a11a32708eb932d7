# Block masks.
_base_ = './full.py'

train_dataloader = dict(dataset=dict(masking=dict(strategy='block')))
