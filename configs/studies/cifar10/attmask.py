# Masks on the patches with the most attention.
_base_ = './full.py'

masking = dict(strategy='random')
model = dict(masking=dict(type='bootmae_mm.AttentionMasking'))
