"""The demonstration: the small student, taught the larger teacher's heatmaps on all faces, labelled or not.

What is taught is the mean of the teacher's maps of a face and of its mirror image. No gain that could be told from chance in
so few steps: NME 6.09, the control 6.13, the teacher 5.84 (mean of 3 seeds).
"""
_base_ = '../_base_/landmarks_demo.py'
model = dict(
    type='Distiller',
    student=dict(type='SmallLandmarkNet', points=68, width=16),
    teacher=dict(
        type='FlipTest',
        network=dict(type='SmallLandmarkNet', points=68, width=32),
        swaps=68,
        codec=dict(type='SoftmaxHeatmap', sigma=4.0),
        checkpoint='work_dirs/landmarks_demo_teacher/student.pth',
        prepare=dict(fold_batchnorm=True),
    ),
    transfers=dict(
        heatmaps=dict(
            student='heatmaps',
            teacher='heatmaps',
            loss=dict(type='SoftTargets', temperature=1.0, over='positions'),
            weight=4.0,
        ),
    ),
)
work_dir = 'work_dirs/landmarks_demo_soft'
