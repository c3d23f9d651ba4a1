"""A teacher on BDD100K: ResNet-34 with a light decoder, from ImageNet weights."""
_base_ = ['../_base_/bdd100k_lanes.py', '../_base_/schedule_lanes_60k.py']
model = dict(
    type='TaskModel',
    network=dict(type='LaneResNet', backbone='resnet34', pretrained=True, num_lanes=1, exist=False),
)
work_dir = 'work_dirs/teacher_r34_bdd100k'
