# No feature injection: decoders without cross-attention.
_base_ = '../bootmae_vitb.py'

model = dict(neck=dict(pixel=dict(context_block=None), feature=dict(context_block=None)))
