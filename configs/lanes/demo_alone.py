"""The control of the demonstration: the small ENet-SAD from the labels alone."""
_base_ = '../_base_/lanes_demo.py'
model = dict(
    type='TaskModel',
    network=dict(type='ENetSAD', width=0.5, depth=(1, 4), num_lanes=4, input_size=(56, 160), dropout=0.0),
)
work_dir = 'work_dirs/lanes_demo_alone'
