# Masks on the patches that are predicted to be hard.
_base_ = './full.py'

masking = dict(strategy='random')
model = dict(
    neck=dict(difficulty=dict(width=96, depth=1, context_block=None)),
    difficulty_head=dict(
        type='bootmae_mm.BootMAEHead',
        target=dict(type='bootmae_mm.ErrorTarget', branch='pixel'),
        loss=dict(type='bootmae_mm.PatchRanking'),
        weighted=False,
    ),
    masking=dict(type='bootmae_mm.PredictedErrorMasking', branch='difficulty'),
)
default_hooks = dict(masking=dict(type='bootmae_mm.MaskingScheduleHook', end=0.5))
