"""ResNet-18 with a light decoder alone on BDD100K."""
_base_ = ['../_base_/bdd100k_lanes.py', '../_base_/schedule_lanes_60k.py']
model = dict(
    type='TaskModel',
    network=dict(type='LaneResNet', backbone='resnet18', pretrained=True, num_lanes=1, exist=False),
)
work_dir = 'work_dirs/alone_r18_bdd100k'
