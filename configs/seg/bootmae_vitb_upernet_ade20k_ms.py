# UperNet with ViT-B/16 on ADE20K, tested at six scales and flipped. Reported by the paper: 50.0 mIoU.
#   tools/dist_test.sh configs/seg/bootmae_vitb_upernet_ade20k_ms.py CHECKPOINT 8
_base_ = './bootmae_vitb_upernet_ade20k.py'
test_dataloader = dict(dataset=dict(pipeline={{_base_.ms_flip_pipeline}}))
custom_hooks = [dict(type='PrepareTTAHook', tta_cfg=dict(type='SegTTAModel'))]
