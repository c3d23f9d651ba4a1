"""Heatmap mimicry as in FPD (Zhang et al., CVPR 2019) on 300-W: hourglass to MobileNetV2."""
_base_ = ['../_base_/landmarks.py', '../_base_/300w.py', '../_base_/schedule_landmarks_light.py']
model = dict(
    type='Distiller',
    student=dict(type='HeatmapNet', backbone='mobilenet_v2', points=68, pretrained=True),
    teacher=dict(type='Hourglass', points=68, residuals=2, form='ts3',
                 checkpoint='work_dirs/teacher_hg4_300w/student.pth',
                 prepare=dict(fold_batchnorm=True, channels_last=True)),
    transfers=dict(
        heatmaps=dict(on='heatmaps', loss=dict(type='HeatmapMimicry'), context=dict(visibility='visible'), weight=1.0),
    ),
    task_weight=0.5,
)
work_dir = 'work_dirs/mimicry_hg4_mbv2_300w'
