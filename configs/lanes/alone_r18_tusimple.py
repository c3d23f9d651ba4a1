"""ResNet-18 with a light decoder alone on TuSimple."""
_base_ = ['../_base_/tusimple.py', '../_base_/schedule_lanes_50k.py']
model = dict(
    type='TaskModel',
    network=dict(type='LaneResNet', backbone='resnet18', pretrained=True, num_lanes=6, input_size=(368, 640)),
)
work_dir = 'work_dirs/alone_r18_tusimple'
