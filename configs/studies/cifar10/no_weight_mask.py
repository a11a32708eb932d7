# All masked patches weigh the same in the losses.
_base_ = './full.py'

model = dict(weight_mask=False)
