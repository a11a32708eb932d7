# Injection of the shallow block into both decoders.
_base_ = '../bootmae_vitb.py'

model = dict(neck=dict(feature=dict(context_block=0)))
