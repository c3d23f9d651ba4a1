"""A teacher: hourglass of 4 stacks, as TS3 has it, on 300-W, by SRT's schedule (Dong et al.)."""
_base_ = ['../_base_/landmarks.py', '../_base_/300w.py', '../_base_/schedule_landmarks_srt.py']
model = dict(type='TaskModel', network=dict(type='Hourglass', points=68, residuals=2, form='ts3'))
work_dir = 'work_dirs/teacher_hg4_300w'
