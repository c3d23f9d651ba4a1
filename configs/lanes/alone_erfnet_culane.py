"""ERFNet alone on CULane."""
_base_ = ['../_base_/culane.py', '../_base_/schedule_lanes_60k.py']
model = dict(
    type='TaskModel',
    network=dict(type='ERFNet', num_lanes=4, input_size=(208, 976)),
)
work_dir = 'work_dirs/alone_erfnet_culane'
