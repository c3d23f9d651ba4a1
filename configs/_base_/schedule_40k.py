"""Structured distillation's schedule: 40,000 steps of SGD with a polynomial decay."""
_base_ = './runtime.py'
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=5e-4))
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=40000, by_epoch=False)]
train_cfg = dict(by_epoch=False, max_iters=40000, val_interval=4000)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(checkpoint=dict(type='Checkpoints', interval=1000, keep=1))
