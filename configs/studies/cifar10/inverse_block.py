# Keep one block, mask all around it.
_base_ = './full.py'

masking = dict(
    _delete_=True,
    type='bootmae_mm.InverseBlockSampling',
    img_size={{_base_.img_size}},
    patch_size={{_base_.patch_size}},
)
