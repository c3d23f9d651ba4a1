"""The usual schedule of re-identification: 120 epochs of Adam, a tenth of the rate after 40 and 90, linear warm-up."""
_base_ = './runtime.py'
optim_wrapper = dict(optimizer=dict(type='Adam', lr=3.5e-4, weight_decay=5e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, begin=0, end=2000, by_epoch=False),
    dict(type='MultiStepLR', milestones=[40, 90], gamma=0.1, by_epoch=True),
]
train_cfg = dict(by_epoch=True, max_epochs=120)
