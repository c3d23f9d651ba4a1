"""Teacher Supervises Students (Dong and Yang, ICCV 2019) with 20 % of 300-W labelled: hourglass and pose machine.

The schedule is SRT's for the hourglass. Its authors train the pose machine by SGD; here both students have one
optimiser, and the pose machine's backbone a quarter of the rate, as its stages have 4 times the backbone's in SBR. Of
the rounds the paper's text was not at hand. Not trained yet.
"""
_base_ = ['../_base_/landmarks_sbr.py', '../_base_/300w_few.py', '../_base_/schedule_landmarks_srt.py']
model = dict(
    type='TeacherSupervisesStudents',
    student=dict(type='Hourglass', points=68, residuals=2, form='ts3'),
    partner=dict(type='CPM', points=68, pretrained=True),
    scorer=dict(type='PatchScorer', points=68),
    criterion=dict(reduction='mean'),
    rounds=4,
    warm_up='epoch 60',
)
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={'partner.backbone': dict(lr_mult=0.25), 'partner.features': dict(lr_mult=0.25)},
    ),
)
work_dir = 'work_dirs/ts3_few_hg4_cpm_300w'
