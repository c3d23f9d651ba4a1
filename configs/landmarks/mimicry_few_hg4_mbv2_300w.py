"""Heatmap mimicry on unlabelled faces: a hourglass that knows 20 % of 300-W to MobileNetV2, on all faces of a batch."""
_base_ = ['../_base_/landmarks.py', '../_base_/300w_few.py', '../_base_/schedule_landmarks_light.py']
model = dict(
    type='Distiller',
    student=dict(type='HeatmapNet', backbone='mobilenet_v2', points=68, pretrained=True),
    teacher=dict(type='Hourglass', points=68, residuals=2, form='ts3',
                 checkpoint='work_dirs/teacher_few_hg4_300w/student.pth',
                 prepare=dict(fold_batchnorm=True, channels_last=True)),
    transfers=dict(
        heatmaps=dict(on='heatmaps', loss=dict(type='HeatmapMimicry'), weight=1.0),
    ),
    task_weight=0.5,
)
work_dir = 'work_dirs/mimicry_few_hg4_mbv2_300w'
