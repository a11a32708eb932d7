# Target: the frozen teacher of a finished run of full.py.
_base_ = './full.py'

model = dict(teacher=dict(checkpoint='work_dirs/full/epoch_8.pth', prefix='teacher.'))
