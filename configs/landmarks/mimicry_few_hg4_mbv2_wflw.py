"""Heatmap mimicry on unlabelled faces: a hourglass that knows 20 % of WFLW to MobileNetV2, on all faces of a batch."""
_base_ = ['../_base_/landmarks.py', '../_base_/wflw_few.py', '../_base_/schedule_landmarks_light.py']
model = dict(
    type='Distiller',
    student=dict(type='HeatmapNet', backbone='mobilenet_v2', points=98, pretrained=True),
    teacher=dict(type='Hourglass', points=98, residuals=2, form='ts3',
                 checkpoint='work_dirs/teacher_few_hg4_wflw/student.pth',
                 prepare=dict(fold_batchnorm=True, channels_last=True)),
    transfers=dict(
        heatmaps=dict(on='heatmaps', loss=dict(type='HeatmapMimicry'), weight=1.0),
    ),
    task_weight=0.5,
)
work_dir = 'work_dirs/mimicry_few_hg4_mbv2_wflw'
