# All masked patches have the same weight in the losses.
_base_ = './full.py'

model = dict(weight_mask=False)
