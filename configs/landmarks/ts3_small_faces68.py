"""Teacher Supervises Students (Dong and Yang, ICCV 2019): a small ResNet and a partner of another kind label faces.

Labels are of the mean of both networks and of each face and its mirror image. Not a gain yet: on a validation part of the
training faces its error is 5.64, that of the control 5.58 (one seed, wider motions of the faces). The labels' error is 5.16
in the first round, 4.79 the better half by the teacher's score (rank correlation .24); the second round, which falls into
high rates, has 5.25.
"""
_base_ = '../_base_/faces68.py'
model = dict(
    type='TeacherSupervisesStudents',
    student=dict(type='HeatmapNet', backbone='resnet18', points=68, width=0.25, channels=32),
    partner=dict(type='SmallLandmarkNet', points=68, width=24),
    scorer=dict(type='PatchScorer', points=68, width=16),
    rounds=2,
    warm_up='epoch 20',
    round_epochs=10,
    share=0.9,
    labels_from='mean',
    mirrored_labels=True,
)
work_dir = 'work_dirs/ts3_small_faces68'
