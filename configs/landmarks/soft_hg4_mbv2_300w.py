"""Soft heatmaps on 300-W, hourglass to MobileNetV2: every heatmap is a distribution over positions.

A heatmap has a peak of 1, so that the temperature is well below 1.
"""
_base_ = ['../_base_/landmarks.py', '../_base_/300w.py', '../_base_/schedule_landmarks_light.py']
model = dict(
    type='Distiller',
    student=dict(type='HeatmapNet', backbone='mobilenet_v2', points=68, pretrained=True),
    teacher=dict(type='Hourglass', points=68, residuals=2, form='ts3',
                 checkpoint='work_dirs/teacher_hg4_300w/student.pth',
                 prepare=dict(fold_batchnorm=True, channels_last=True)),
    transfers=dict(
        soft=dict(on='heatmaps', loss=dict(type='SoftTargets', temperature=0.1, over='positions'), weight=0.5),
    ),
)
work_dir = 'work_dirs/soft_hg4_mbv2_300w'
