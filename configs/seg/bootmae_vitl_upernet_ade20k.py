# UperNet with ViT-L/16 on ADE20K. We know of no reported result. ViT-B's recipe, with the layer decay of fine-tuning
# ViT-L.
_base_ = './bootmae_vitb_upernet_ade20k.py'
model = dict(
    backbone=dict(
        arch='l', out_indices=(7, 11, 15, 23), init_cfg=dict(checkpoint='work_dirs/bootmae_vitl/epoch_800.pth')
    ),
    neck=dict(embed_dim=1024),
    decode_head=dict(in_channels=[1024] * 4, channels=1024),
    auxiliary_head=dict(in_channels=1024),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.75))
