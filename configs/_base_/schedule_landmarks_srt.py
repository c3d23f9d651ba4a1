"""SRT's schedule for the hourglass: 160 epochs of RMSprop, half of the rate after 60, 90 and 110, a fifth after 140."""
_base_ = './runtime.py'
optim_wrapper = dict(optimizer=dict(type='RMSprop', lr=2.5e-4))
param_scheduler = [
    dict(type='MultiStepLR', milestones=[60, 90, 110], gamma=0.5, by_epoch=True),
    dict(type='MultiStepLR', milestones=[140], gamma=0.2, by_epoch=True),
]
train_cfg = dict(by_epoch=True, max_epochs=160)
