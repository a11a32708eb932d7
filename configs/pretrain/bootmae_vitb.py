# ViT-B/16, ImageNet-1K, 800 epochs, bf16, for 8 GPUs:
#   tools/dist_train.sh configs/pretrain/bootmae_vitb.py 8
_base_ = [
    '../_base_/models/bootmae_vitb.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/adamw_800e.py',
    '../_base_/runtime/pretrain.py',
]

model = dict(
    data_preprocessor=dict(mean={{_base_.mean}}, std={{_base_.std}}),
    backbone=dict(img_size={{_base_.img_size}}, patch_size={{_base_.patch_size}}, in_channels={{_base_.channels}}),
)
