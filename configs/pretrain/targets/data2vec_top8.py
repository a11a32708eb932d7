# Target: the mean of the teacher's last 8 blocks, each normalized (data2vec), instead of its last block.
_base_ = '../bootmae_vitb.py'

model = dict(feature_head=dict(target=dict(type='bootmae_mm.TeacherTarget', top_k=8)))
