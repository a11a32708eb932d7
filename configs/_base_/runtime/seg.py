_base_ = './downstream.py'
default_scope = 'mmseg'
# draw=True writes predictions of the test set beside the ground truth.
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=16000, save_best='mIoU'),
    # Stops the run at a segmentation map with an unknown id, and names the file.
    check_segmentation=dict(type='bootmae_mm.CheckSegmentationHook'),
    visualization=dict(type='SegVisualizationHook', draw=False),
)
visualizer = dict(type='SegLocalVisualizer', vis_backends={{_base_.vis_backends}}, name='visualizer', alpha=0.5)
log_processor = dict(by_epoch=False)
