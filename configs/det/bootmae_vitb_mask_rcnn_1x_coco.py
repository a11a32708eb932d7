# Mask R-CNN with ViT-B/16 on COCO, 12 epochs, four-level pyramid, global attention. Reported by the paper: +1.3 box AP
# and +1.4 mask AP over MAE. Its code has no detection; lr, layer decay and drop path here are common values.
#   tools/dist_train.sh configs/det/bootmae_vitb_mask_rcnn_1x_coco.py 8
_base_ = [
    '../_base_/models/mask_rcnn_vitb.py',
    '../_base_/datasets/coco.py',
    '../_base_/schedules/mask_rcnn_1x.py',
    '../_base_/runtime/det.py',
]
