# Your own images: any folder, without labels or class folders.
#   tools/dist_train.sh configs/pretrain/bootmae_vitb_folder.py 8 --cfg-options data_root=/your/images
_base_ = './bootmae_vitb.py'

data_root = 'data/images'
train_dataloader = dict(dataset=dict(data_root=data_root, folder='', max_unreadable=0.01))
test_dataloader = dict(dataset=dict(data_root=data_root, folder=''))
