"""Teacher Supervises Students (Dong and Yang, ICCV 2019): a small and a larger network label faces for themselves.

One round of labels, at half of the training: they are only as good as the partner, and the student needs as many steps again
to profit. Labels are of the mean of both networks' maps. Both networks are of one family.
NME 5.00 +- 0.03, alone 5.04 +- 0.07 (test, 3 seeds).
"""
_base_ = '../_base_/faces68.py'
model = dict(
    type='TeacherSupervisesStudents',
    student=dict(type='SmallLandmarkNet', points=68, width=16),
    partner=dict(type='SmallLandmarkNet', points=68, width=32),
    scorer=dict(type='PatchScorer', points=68, width=16),
    rounds=1,
    warm_up='epoch 40',
    share=0.9,
    held_out=0.05,
    labels_from='mean',
)
work_dir = 'work_dirs/ts3_small_faces68'
