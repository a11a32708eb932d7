# Swapped injection: the deep block into the pixel regressor, the shallow one into the feature predictor.
_base_ = '../bootmae_vitb.py'

model = dict(neck=dict(pixel=dict(context_block=-1), feature=dict(context_block=0)))
