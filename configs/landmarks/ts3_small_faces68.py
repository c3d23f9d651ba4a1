"""Teacher Supervises Students (Dong and Yang, ICCV 2019): a small and a larger network label faces for each other.

Labels are of the mean of a network's maps of a face and of its mirror image.
"""
_base_ = '../_base_/faces68.py'
model = dict(
    type='TeacherSupervisesStudents',
    student=dict(type='SmallLandmarkNet', points=68, width=16),
    partner=dict(type='SmallLandmarkNet', points=68, width=32),
    scorer=dict(type='PatchScorer', points=68, width=16),
    rounds=2,
    warm_up='epoch 20',
    round_epochs=20,
    share=0.9,
    labels_from='mean',
    mirrored_labels=True,
)
work_dir = 'work_dirs/ts3_small_faces68'
