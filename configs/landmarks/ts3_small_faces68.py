"""Teacher Supervises Students (Dong and Yang, ICCV 2019): the small student and a partner of twice its width label faces.

The partner is what the labels are good by, so it is the larger network; labels are of the mean of both networks and of
each face and its mirror image. It has not been trained as it stands: with batches of 32 and half the steps, on validation
faces, it was no better than the control.
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
