"""The control of sad_enet_bdd100k: ENet with the extra encoder block, not distilled."""
_base_ = ['../_base_/bdd100k_lanes.py', '../_base_/schedule_lanes_60k.py']
model = dict(
    type='TaskModel',
    network=dict(type='ENetSAD', num_lanes=1, exist=False),
)
work_dir = 'work_dirs/alone_enet_sad_bdd100k'
