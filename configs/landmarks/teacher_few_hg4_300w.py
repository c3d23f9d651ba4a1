"""A teacher that knows 20 % of 300-W: hourglass of 4 stacks, on the labelled faces of a batch alone."""
_base_ = ['../_base_/landmarks.py', '../_base_/300w_few.py', '../_base_/schedule_landmarks_srt.py']
model = dict(type='TaskModel', network=dict(type='Hourglass', points=68, residuals=2, form='ts3'))
work_dir = 'work_dirs/teacher_few_hg4_300w'
