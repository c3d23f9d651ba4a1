"""Attention transfer (Zagoruyko and Komodakis, ICLR 2017) on BDD100K: SCNN to ENet, at stride 8."""
_base_ = ['../_base_/bdd100k_lanes.py', '../_base_/schedule_lanes_60k.py']
model = dict(
    type='Distiller',
    student=dict(type='ENet', num_lanes=1, exist=False),
    teacher=dict(type='SCNN', num_lanes=1, exist=False,
                 checkpoint='work_dirs/teacher_scnn_bdd100k/student.pth',
                 prepare=dict(fold_batchnorm=True, channels_last=True)),
    transfers=dict(
        attention=dict(student='e3', teacher='messages', loss=dict(type='AttentionTransfer'), weight=1000.0),
    ),
)
work_dir = 'work_dirs/at_scnn_enet_bdd100k'
