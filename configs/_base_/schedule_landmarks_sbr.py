"""SBR's schedule for the convolutional pose machine: 50 epochs of SGD, half of the rate after 30 and 40.

Stages learn 4 times as fast as the backbone, biases twice as fast as weights and without decay.
"""
_base_ = './runtime.py'
_biases = {
    f'stages.{stage}.{layer}.bias': dict(lr_mult=8.0, decay_mult=0.0) for stage in range(3) for layer in range(0, 18, 2)
}
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=5e-5, momentum=0.9, nesterov=True, weight_decay=5e-4),
    paramwise_cfg=dict(
        bias_lr_mult=2.0, bias_decay_mult=0.0, custom_keys={'stages': dict(lr_mult=4.0), **_biases},
    ),
)
param_scheduler = [dict(type='MultiStepLR', milestones=[30, 40], gamma=0.5, by_epoch=True)]
train_cfg = dict(by_epoch=True, max_epochs=50)
