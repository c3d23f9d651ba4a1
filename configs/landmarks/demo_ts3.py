"""The demonstration: Teacher Supervises Students (Dong and Yang, ICCV 2019); two students label faces.

Both are of one family, the partner twice as wide. Not a gain yet: NME 8.29, the control 7.88 (one seed).
"""
_base_ = '../_base_/landmarks_demo.py'
model = dict(
    type='TeacherSupervisesStudents',
    student=dict(type='SmallLandmarkNet', points=68, width=8),
    partner=dict(type='SmallLandmarkNet', points=68, width=16),
    scorer=dict(type='PatchScorer', points=68, width=16),
    rounds=2,
    warm_up='epoch 10',
    round_epochs=10,
    share=0.9,
    labels_from='mean',
    mirrored_labels=True,
    scorer_steps=100,
)
work_dir = 'work_dirs/landmarks_demo_ts3'
