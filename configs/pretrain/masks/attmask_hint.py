# AttMask with hints: 3 % of the patches, among the 10 % that are attended to most, stay visible.
_base_ = './attmask.py'

model = dict(masking=dict(strategy='hint', hint_share=0.1, shown_share=0.3))
