# Any folder of images. What is 'auto' is chosen from the images, the model and the machine when the run starts, and
# logged with the reason; any value in its place is kept. The rules: bootmae_mm/engine/auto.py.
#   bootmae train --data /your/images --out run
_base_ = './bootmae_vitb_folder.py'

model = dict(backbone=dict(arch='s'))
auto_scale_lr = None  # the lr is chosen for the batch
train_cfg = dict(max_epochs='auto')
train_dataloader = dict(batch_size='auto', num_workers='auto')
test_dataloader = dict(batch_size='auto', num_workers='auto')
optim_wrapper = dict(dtype='auto', accumulative_counts='auto', optimizer=dict(lr='auto'))
env_cfg = dict(num_threads='auto')
default_hooks = dict(
    ema=dict(decay='auto'),
    logger=dict(interval='auto'),
    checkpoint=dict(interval='auto'),
    reconstruction=dict(interval='auto'),
)
