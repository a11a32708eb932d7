# Features only.
_base_ = './full.py'

model = dict(neck=dict(pixel=None), pixel_head=None)
