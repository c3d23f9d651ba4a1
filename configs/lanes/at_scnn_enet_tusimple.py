"""Attention transfer (Zagoruyko and Komodakis, ICLR 2017) on TuSimple: SCNN to ENet, at stride 8."""
_base_ = ['../_base_/tusimple.py', '../_base_/schedule_lanes_50k.py']
model = dict(
    type='Distiller',
    student=dict(type='ENet', num_lanes=6, input_size=(368, 640)),
    teacher=dict(type='SCNN', num_lanes=6, input_size=(368, 640),
                 checkpoint='work_dirs/teacher_scnn_tusimple/student.pth',
                 prepare=dict(fold_batchnorm=True, channels_last=True)),
    transfers=dict(
        attention=dict(student='e3', teacher='messages', loss=dict(type='AttentionTransfer'), weight=1000.0),
    ),
)
work_dir = 'work_dirs/at_scnn_enet_tusimple'
