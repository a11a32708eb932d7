# Masks on the patches whose reconstruction is predicted to be hard, more of them with every epoch (HPM).
_base_ = '../bootmae_vitb.py'

masking = dict(strategy='random')
model = dict(
    # HPM's loss predictor has 8 blocks; 2 here, as in the other decoders.
    neck=dict(difficulty=dict(width=512, depth=2, context_block=None)),
    difficulty_head=dict(
        type='bootmae_mm.BootMAEHead',
        target=dict(type='bootmae_mm.ErrorTarget', branch='pixel'),
        loss=dict(type='bootmae_mm.PatchRanking'),
        weighted=False,
    ),
    masking=dict(type='bootmae_mm.PredictedErrorMasking', branch='difficulty'),
)
default_hooks = dict(masking=dict(type='bootmae_mm.MaskingScheduleHook', end=0.5))
