"""The control of sad_enet_culane: ENet with the extra encoder block, not distilled."""
_base_ = ['../_base_/culane.py', '../_base_/schedule_lanes_60k.py']
model = dict(
    type='TaskModel',
    network=dict(type='ENetSAD', num_lanes=4, input_size=(208, 976)),
)
work_dir = 'work_dirs/alone_enet_sad_culane'
