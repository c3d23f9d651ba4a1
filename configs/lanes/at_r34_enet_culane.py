"""Attention transfer (Zagoruyko and Komodakis, ICLR 2017) on CULane: ResNet-34 to ENet, at stride 8."""
_base_ = ['../_base_/culane.py', '../_base_/schedule_lanes_60k.py']
model = dict(
    type='Distiller',
    student=dict(type='ENet', num_lanes=4, input_size=(208, 976)),
    teacher=dict(type='LaneResNet', backbone='resnet34', num_lanes=4, input_size=(208, 976),
                 checkpoint='work_dirs/teacher_r34_culane/student.pth',
                 prepare=dict(fold_batchnorm=True, channels_last=True)),
    transfers=dict(
        attention=dict(student='e3', teacher='backbone.layer4', loss=dict(type='AttentionTransfer'), weight=1000.0),
    ),
)
work_dir = 'work_dirs/at_r34_enet_culane'
