# UperNet with ViT-B/16 on ADE20K, 512 x 512, 160k iterations. Reported by the paper: 49.1 mIoU.
#   tools/dist_train.sh configs/seg/bootmae_vitb_upernet_ade20k.py 8
_base_ = [
    '../_base_/models/upernet_vitb.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/upernet_160k.py',
    '../_base_/runtime/seg.py',
]
model = dict(
    data_preprocessor=dict(size={{_base_.crop_size}}),
    backbone=dict(img_size={{_base_.crop_size}}),
    test_cfg=dict(crop_size={{_base_.crop_size}}, stride={{_base_.stride}}),
)
