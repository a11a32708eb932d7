# Mask R-CNN with ViT-L/16 on COCO, 12 epochs.
_base_ = './bootmae_vitb_mask_rcnn_1x_coco.py'
model = dict(
    backbone=dict(
        arch='l',
        out_indices=(7, 11, 15, 23),
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint='work_dirs/bootmae_vitl/epoch_800.pth'),
    ),
    neck=[
        dict(type='mmseg.Feature2Pyramid', embed_dim=1024, norm_cfg=dict(type='SyncBN', requires_grad=True)),
        dict(type='FPN', in_channels=[1024] * 4, out_channels=256, num_outs=5),
    ],
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.8))
