"""The control of the distillations from a teacher to ENet on BDD100K: the same student alone."""
_base_ = ['../_base_/bdd100k_lanes.py', '../_base_/schedule_lanes_60k.py']
model = dict(
    type='TaskModel',
    network=dict(type='ENet', num_lanes=1, exist=False),
)
work_dir = 'work_dirs/alone_enet_bdd100k'
