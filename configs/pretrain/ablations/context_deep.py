# Injection of the deep block into both decoders.
_base_ = '../bootmae_vitb.py'

model = dict(neck=dict(pixel=dict(context_block=-1)))
