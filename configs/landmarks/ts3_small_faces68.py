"""Teacher Supervises Students (Dong and Yang, ICCV 2019): the small student and a small hourglass label faces."""
_base_ = '../_base_/faces68.py'
model = dict(
    type='TeacherSupervisesStudents',
    student=dict(type='SmallLandmarkNet', points=68, width=16),
    partner=dict(type='Hourglass', points=68, stacks=1, channels=32, depth=3),
    scorer=dict(type='PatchScorer', points=68, width=16),
    rounds=3,
    warm_up='epoch 12',
    round_epochs=4,
    labels_from='mean',
)
work_dir = 'work_dirs/ts3_small_faces68'
