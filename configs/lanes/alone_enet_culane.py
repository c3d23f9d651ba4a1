"""The control of the distillations from a teacher to ENet on CULane: the same student alone."""
_base_ = ['../_base_/culane.py', '../_base_/schedule_lanes_60k.py']
model = dict(
    type='TaskModel',
    network=dict(type='ENet', num_lanes=4, input_size=(208, 976)),
)
work_dir = 'work_dirs/alone_enet_culane'
