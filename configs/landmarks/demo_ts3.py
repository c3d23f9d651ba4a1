"""The demonstration: Teacher Supervises Students (Dong and Yang, ICCV 2019); two students label faces.

Both are of one family, the partner half as wide again. No gain in so few steps: NME 6.26, the control 6.13 (mean of 3
seeds); labels of an unfinished partner are no better than what the student alone finds in the end. `ts3_small_faces68`
has a small one.
"""
_base_ = '../_base_/landmarks_demo.py'
model = dict(
    type='TeacherSupervisesStudents',
    student=dict(type='SmallLandmarkNet', points=68, width=16),
    partner=dict(type='SmallLandmarkNet', points=68, width=24),
    scorer=dict(type='PatchScorer', points=68, width=16),
    rounds=1,
    warm_up='epoch 18',
    share=0.9,
    labels_from='mean',
    mirrored_labels=True,
    scorer_steps=100,
)
work_dir = 'work_dirs/landmarks_demo_ts3'
