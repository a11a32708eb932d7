# kNN probe of the mean patch token of the last block on CIFAR-10.
#   python tools/knn.py configs/studies/cifar10/knn.py CHECKPOINT --cfg-options data_root=/path/to/cifar10
_base_ = '../../cls/bootmae_vitb_knn.py'
data_root = 'data/cifar10'
model = dict(
    data_preprocessor=dict(num_classes=10),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=128, num_layers=6, num_heads=4, feedforward_channels=512),
        img_size=32,
        patch_size=4,
    ),
    head=dict(num_classes=10, in_channels=128),
)
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    num_workers=0, timeout=0, dataset=dict(data_root=data_root, data_prefix='train', pipeline=pipeline)
)
test_dataloader = dict(
    num_workers=0, timeout=0, dataset=dict(data_root=data_root, data_prefix='test', pipeline=pipeline)
)
knn = dict(k=(20,), temperature=0.07)
