"""ResNet-18 with a light decoder alone on CULane."""
_base_ = ['../_base_/culane.py', '../_base_/schedule_lanes_60k.py']
model = dict(
    type='TaskModel',
    network=dict(type='LaneResNet', backbone='resnet18', pretrained=True, num_lanes=4, input_size=(208, 976)),
)
work_dir = 'work_dirs/alone_r18_culane'
