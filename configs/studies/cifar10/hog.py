# HOG as the target of the feature branch.
_base_ = './full.py'

model = dict(feature_head=dict(type='bootmae_mm.BootMAEHead', target=dict(type='bootmae_mm.HOGTarget')))
