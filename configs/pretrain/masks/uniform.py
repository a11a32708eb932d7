# Keep one patch of every 2 x 2 (UM-MAE).
_base_ = '../bootmae_vitb.py'

masking = dict(
    _delete_=True,
    type='bootmae_mm.UniformSampling',
    img_size={{_base_.img_size}},
    patch_size={{_base_.patch_size}},
)
