# BootMAE with ViT-B. Neck and heads take width, heads, grid and patch size from the backbone; the configs that inherit
# from this set img_size, patch_size and in_channels of the backbone.
model = dict(
    type='bootmae_mm.BootMAE',
    data_preprocessor=dict(type='bootmae_mm.BootMAEDataPreprocessor', mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(type='bootmae_mm.BootMAEViT', arch='b'),
    neck=dict(
        type='bootmae_mm.BootMAENeck',
        # Feature injection: the shallow block into the pixel regressor, the deep one into the feature predictor
        # (fea_list=[0, 11] in the authors' code).
        pixel=dict(width=512, depth=2, context_block=0),
        feature=dict(depth=2, context_block=-1),
    ),
    pixel_head=dict(type='bootmae_mm.BootMAEPixelHead', normalize='channel'),
    feature_head=dict(type='bootmae_mm.BootMAEFeatureHead'),
    weight_mask=True,
)
