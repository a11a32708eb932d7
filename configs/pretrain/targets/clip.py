# Target: CLIP's patch tokens before the final norm, from a file of timm (or of OpenCLIP).
#   --cfg-options model.feature_head.target.checkpoint=vit_base_patch16_clip_224.safetensors
_base_ = '../bootmae_vitb.py'

model = dict(
    feature_head=dict(
        target=dict(
            type='bootmae_mm.FrozenTarget',
            encoder=dict(type='TIMMBackbone', model_name='vit_base_patch16_clip_224'),
            checkpoint='checkpoints/vit_base_patch16_clip_224.safetensors',
            features='block',
            mean=(122.771, 116.746, 104.094),
            std=(68.501, 66.632, 70.323),
        )
    )
)
