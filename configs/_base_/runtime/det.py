_base_ = './downstream.py'
default_scope = 'mmdet'
# draw=True writes predictions of the test set beside the ground truth.
default_hooks = dict(
    checkpoint=dict(save_best='coco/segm_mAP'), visualization=dict(type='DetVisualizationHook', draw=False)
)
visualizer = dict(type='DetLocalVisualizer', vis_backends={{_base_.vis_backends}}, name='visualizer')
