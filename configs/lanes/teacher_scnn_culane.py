"""A teacher on CULane: SCNN over VGG-16, from ImageNet weights."""
_base_ = ['../_base_/culane.py', '../_base_/schedule_lanes_60k.py']
model = dict(
    type='TaskModel',
    network=dict(type='SCNN', pretrained=True, num_lanes=4, input_size=(208, 976)),
)
work_dir = 'work_dirs/teacher_scnn_culane'
