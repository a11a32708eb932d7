# Target: the codes of BEiT v2's tokenizer, with a cross-entropy.
#   https://mmassets.onedl.ai/mmselfsup/1.x/target_generator_ckpt/vqkd_encoder.pth
_base_ = '../bootmae_vitb.py'

encoder = dict(
    arch='base',
    img_size=224,
    patch_size=16,
    out_type='featmap',
    use_abs_pos_emb=True,
    use_shared_rel_pos_bias=False,
    layer_scale_init_value=0.0,
)
target = dict(
    type='bootmae_mm.CodeTarget',
    tokenizer=dict(type='VQKD', encoder_config=encoder),
    checkpoint='checkpoints/vqkd_encoder.pth',
)
loss = dict(type='bootmae_mm.PatchCrossEntropy')
model = dict(feature_head=dict(type='bootmae_mm.BootMAEHead', target=target, loss=loss))
