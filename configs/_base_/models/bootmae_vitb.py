# BootMAE with ViT-B/16 at 224 px. Neck and heads take width, heads, grid and patch from the backbone.
model = dict(
    type='bootmae_mm.BootMAE',
    data_preprocessor=dict(type='bootmae_mm.BootMAEDataPreprocessor', mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(type='bootmae_mm.BootMAEViT', arch='b', img_size=224, patch_size=16),
    neck=dict(
        type='bootmae_mm.BootMAENeck',
        # The pixel regressor is told about the shallow block, the feature predictor about the deep one
        # (fea_list=[0, 11] of the authors).
        pixel=dict(width=512, depth=2, context_block=0),
        feature=dict(depth=2, context_block=-1),
    ),
    pixel_head=dict(type='bootmae_mm.BootMAEPixelHead', normalize='channel'),
    feature_head=dict(type='bootmae_mm.BootMAEFeatureHead'),
    weight_mask=True,
)
