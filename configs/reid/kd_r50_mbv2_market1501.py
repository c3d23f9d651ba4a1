"""Soft targets on Market-1501: ResNet-50 to MobileNetV2, with the identities' logits; temperature 4."""
_base_ = ['../_base_/reid.py', '../_base_/market1501.py', '../_base_/schedule_reid.py']
model = dict(
    type='Distiller',
    student=dict(type='ReIDNetwork', backbone='mobilenet_v2', num_classes=751, pretrained=True),
    teacher=dict(type='ReIDNetwork', backbone='resnet50', num_classes=751,
                 checkpoint='work_dirs/teacher_r50_market1501/student.pth',
                 prepare=dict(fold_batchnorm=True, channels_last=True)),
    transfers=dict(
        soft=dict(on='logits', loss=dict(type='SoftTargets', temperature=4.0), weight=0.9),
    ),
)
work_dir = 'work_dirs/kd_r50_mbv2_market1501'
