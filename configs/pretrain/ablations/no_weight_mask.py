# All masked patches weigh the same in the losses.
_base_ = '../bootmae_vitb.py'

model = dict(weight_mask=False)
