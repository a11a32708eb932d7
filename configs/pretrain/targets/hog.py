# HOG as the target of the feature branch (MaskFeat), beside pixels; no teacher (its hook does nothing).
_base_ = '../bootmae_vitb.py'

model = dict(feature_head=dict(type='bootmae_mm.BootMAEHead', target=dict(type='bootmae_mm.HOGTarget')))
