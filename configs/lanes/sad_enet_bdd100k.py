"""Self attention distillation (Hou et al., ICCV 2019) on BDD100K: blocks 2 and 3 of ENet-SAD learn from the next.

It begins after two thirds of the steps. `zscore` scales the attention maps before the softmax; the paper's form is
`map_norm='none'`, which the docstring of `SAD` measures.
"""
_base_ = ['../_base_/bdd100k_lanes.py', '../_base_/schedule_lanes_60k.py']
_sad = dict(type='SAD', map_norm='zscore')
model = dict(
    type='Distiller',
    student=dict(type='ENetSAD', num_lanes=1, exist=False),
    transfers=dict(
        e2=dict(student='e2', target='e3', loss=_sad, weight=0.1, begin='iter 40000'),
        e3=dict(student='e3', target='e4', loss=_sad, weight=0.1, begin='iter 40000'),
    ),
)
work_dir = 'work_dirs/sad_enet_bdd100k'
