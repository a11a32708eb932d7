# The deep block for both decoders.
_base_ = '../bootmae_vitb.py'

model = dict(neck=dict(pixel=dict(context_block=-1)))
