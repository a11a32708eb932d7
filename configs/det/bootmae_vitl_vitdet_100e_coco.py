# Mask R-CNN with ViT-L/16 on COCO as in ViTDet, with its layer decay and drop path for ViT-L.
_base_ = './bootmae_vitb_vitdet_100e_coco.py'
model = dict(
    backbone=dict(
        arch='l',
        global_blocks=(5, 11, 17, 23),
        drop_path_rate=0.4,
        init_cfg=dict(checkpoint='work_dirs/bootmae_vitl/epoch_800.pth'),
    ),
    neck=dict(in_channels=1024),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.8))
