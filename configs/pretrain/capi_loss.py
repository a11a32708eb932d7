# CAPI's loss in the feature branch: clusters of the teacher's tokens, learned during the run. Beside pixels.
_base_ = './bootmae_vitb.py'

model = dict(
    feature_head=dict(
        type='bootmae_mm.ClusterHead', target=dict(type='bootmae_mm.ClusterTarget', clusters=16384), weighted=False
    )
)
