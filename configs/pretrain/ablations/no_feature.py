# Pixels only: no feature branch, no teacher (its hooks do nothing).
_base_ = '../bootmae_vitb.py'

model = dict(neck=dict(feature=None), feature_head=None)
