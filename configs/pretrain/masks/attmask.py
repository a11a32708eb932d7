# Masks on the patches that the teacher's class token attends to most (AttMask). The loader's masks, which must be
# random, say how many.
_base_ = '../bootmae_vitb.py'

masking = dict(strategy='random')
model = dict(masking=dict(type='bootmae_mm.AttentionMasking', strategy='high'))
