"""A teacher on TuSimple: ResNet-34 with a light decoder, from ImageNet weights."""
_base_ = ['../_base_/tusimple.py', '../_base_/schedule_lanes_50k.py']
model = dict(
    type='TaskModel',
    network=dict(type='LaneResNet', backbone='resnet34', pretrained=True, num_lanes=6, input_size=(368, 640)),
)
work_dir = 'work_dirs/teacher_r34_tusimple'
