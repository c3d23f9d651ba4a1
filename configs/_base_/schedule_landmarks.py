"""A schedule for landmarks: 60 epochs of Adam, a tenth of the rate after 30 and 50."""
_base_ = './runtime.py'
optim_wrapper = dict(optimizer=dict(type='Adam', lr=2.5e-4))
param_scheduler = [dict(type='MultiStepLR', milestones=[30, 50], gamma=0.1, by_epoch=True)]
train_cfg = dict(by_epoch=True, max_epochs=60)
