# kNN probe of ViT-B/16: cosine of the mean patch token after the last block, before the final norm.
#   python tools/knn.py configs/cls/bootmae_vitb_knn.py work_dirs/bootmae_vitb/epoch_800.pth
_base_ = [
    '../_base_/models/classifier_vitb.py',
    '../_base_/datasets/imagenet_cls.py',
    '../_base_/runtime/cls.py',
]
model = dict(
    backbone=dict(img_size={{_base_.img_size}}, out_type='featmap', drop_path_rate=0.0),
    neck=dict(type='GlobalAveragePooling'),
    train_cfg=None,
)
train_dataloader = dict(drop_last=False, dataset=dict(pipeline={{_base_.test_pipeline}}))
knn = dict(k=(5, 10, 20), temperature=0.07)
