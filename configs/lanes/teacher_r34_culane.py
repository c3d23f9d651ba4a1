"""A teacher on CULane: ResNet-34 with a light decoder, from ImageNet weights."""
_base_ = ['../_base_/culane.py', '../_base_/schedule_lanes_60k.py']
model = dict(
    type='TaskModel',
    network=dict(type='LaneResNet', backbone='resnet34', pretrained=True, num_lanes=4, input_size=(208, 976)),
)
work_dir = 'work_dirs/teacher_r34_culane'
