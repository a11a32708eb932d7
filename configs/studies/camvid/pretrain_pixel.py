# Pixels only.
_base_ = './pretrain.py'

model = dict(neck=dict(feature=None), feature_head=None)
