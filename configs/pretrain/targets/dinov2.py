# Target: DINOv2's patch tokens, from a file of timm or of its authors. Its patches of 14 see 196 x 196 pixels.
#   --cfg-options model.feature_head.target.checkpoint=dinov2_vitb14_pretrain.pth
_base_ = '../bootmae_vitb.py'

model = dict(
    feature_head=dict(
        target=dict(
            type='bootmae_mm.FrozenTarget',
            encoder=dict(type='TIMMBackbone', model_name='vit_base_patch14_dinov2'),
            checkpoint='checkpoints/dinov2_vitb14_pretrain.pth',
            patch_size=14,
        )
    )
)
