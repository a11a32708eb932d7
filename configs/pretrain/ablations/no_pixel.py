# Features only: no pixel branch.
_base_ = '../bootmae_vitb.py'

model = dict(neck=dict(pixel=None), pixel_head=None)
