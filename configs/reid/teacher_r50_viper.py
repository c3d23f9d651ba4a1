"""A teacher: ResNet-50 on VIPeR, in the plain folder layout, with 316 of its 632 people for training.

A person has two pictures there and an epoch is short: 40 steps of warm-up, and batches of 32 identities x 2.
"""
_base_ = './teacher_r50_market1501.py'
_data = dict(type='ReIDFolder', data_root='datasets/viper')
model = dict(network=dict(num_classes=316))
train_dataloader = dict(sampler=dict(identities=32, pictures=2), dataset=_data)
test_dataloader = dict(dataset=_data)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, begin=0, end=40, by_epoch=False),
    dict(type='MultiStepLR', milestones=[40, 90], gamma=0.1, by_epoch=True),
]
work_dir = 'work_dirs/teacher_r50_viper'
