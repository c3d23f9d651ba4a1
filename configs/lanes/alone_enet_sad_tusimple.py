"""The control of sad_enet_tusimple: ENet with the extra encoder block, not distilled."""
_base_ = ['../_base_/tusimple.py', '../_base_/schedule_lanes_50k.py']
model = dict(
    type='TaskModel',
    network=dict(type='ENetSAD', num_lanes=6, input_size=(368, 640)),
)
work_dir = 'work_dirs/alone_enet_sad_tusimple'
