# All masked patches have the same weight in the losses.
_base_ = '../bootmae_vitb.py'

model = dict(weight_mask=False)
