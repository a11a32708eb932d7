# No feature injection.
_base_ = './full.py'

model = dict(neck=dict(pixel=dict(context_block=None), feature=dict(context_block=None)))
