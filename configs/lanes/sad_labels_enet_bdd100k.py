"""The released variant of sad_enet_bdd100k: block 3 learns from block 4, and block 4 from the labels."""
_base_ = './sad_enet_bdd100k.py'
_sad = dict(type='SAD', map_norm='zscore')
_labels = dict(type='LabelAttention', map_norm='zscore')
model = dict(
    transfers=dict(
        _delete_=True,
        e3=dict(student='e3', target='e4', loss=_sad, weight=0.1, begin='iter 40000'),
        labels=dict(student='e4', loss=_labels, weight=0.1, begin='iter 40000'),
    ),
)
work_dir = 'work_dirs/sad_labels_enet_bdd100k'
