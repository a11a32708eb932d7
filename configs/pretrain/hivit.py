# A hierarchical encoder: HiViT-B, 78 M parameters, maps of strides 4, 8 and 16. No class token.
_base_ = './bootmae_vitb.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='bootmae_mm.BootMAEHiViT',
        arch='base',
        img_size={{_base_.img_size}},
        patch_size={{_base_.patch_size}},
        in_channels={{_base_.channels}},
    )
)
