"""A teacher on TuSimple: SCNN over VGG-16, from ImageNet weights."""
_base_ = ['../_base_/tusimple.py', '../_base_/schedule_lanes_50k.py']
model = dict(
    type='TaskModel',
    network=dict(type='SCNN', pretrained=True, num_lanes=6, input_size=(368, 640)),
)
work_dir = 'work_dirs/teacher_scnn_tusimple'
