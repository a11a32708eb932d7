# Pixels only: no feature branch, no teacher.
_base_ = '../bootmae_vitb.py'

model = dict(neck=dict(feature=None), feature_head=None)
default_hooks = dict(ema=None, feature_weight=None)
