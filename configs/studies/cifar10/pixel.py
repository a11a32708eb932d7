# Pixels only.
_base_ = './full.py'

model = dict(neck=dict(feature=None), feature_head=None)
