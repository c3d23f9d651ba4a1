"""Heatmap mimicry as in FPD (Zhang et al., CVPR 2019) on 300-W: hourglass of 256 channels to one of 128.

Every stack mimics the last of the teacher. The student begins with the weights of alone_hg4_light_300w: the authors'
code has no gain without that.
"""
_base_ = ['../_base_/landmarks.py', '../_base_/300w.py', '../_base_/schedule_landmarks.py']
model = dict(
    type='Distiller',
    student=dict(type='Hourglass', points=68, stacks=4, channels=128),
    teacher=dict(type='Hourglass', points=68, residuals=2, form='ts3',
                 checkpoint='work_dirs/teacher_hg4_300w/student.pth',
                 prepare=dict(fold_batchnorm=True, channels_last=True)),
    transfers=dict(
        heatmaps=dict(
            student=['scores.0', 'scores.1', 'scores.2', 'scores.3'],
            teacher='heatmaps',
            loss=dict(type='HeatmapMimicry'),
            context=dict(visibility='visible'),
            weight=1.0,
        ),
    ),
    task_weight=0.5,
    checkpoint='work_dirs/alone_hg4_light_300w/student.pth',
)
work_dir = 'work_dirs/mimicry_hg4_hg4_light_300w'
