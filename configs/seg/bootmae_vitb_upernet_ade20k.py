# UperNet with ViT-B/16 on ADE20K, 512 x 512, 160k iterations. Reported by the paper: 49.1 mIoU.
#   tools/dist_train.sh configs/seg/bootmae_vitb_upernet_ade20k.py 8
_base_ = [
    '../_base_/models/upernet_vitb.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/upernet_160k.py',
    '../_base_/runtime/seg.py',
]
