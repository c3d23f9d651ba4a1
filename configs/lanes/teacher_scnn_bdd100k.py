"""A teacher on BDD100K: SCNN over VGG-16, from ImageNet weights."""
_base_ = ['../_base_/bdd100k_lanes.py', '../_base_/schedule_lanes_60k.py']
model = dict(
    type='TaskModel',
    network=dict(type='SCNN', pretrained=True, num_lanes=1, exist=False),
)
work_dir = 'work_dirs/teacher_scnn_bdd100k'
