"""The schedule of ENet-SAD on CULane and BDD100K: 60,000 steps of SGD with Nesterov momentum and a polynomial decay."""
_base_ = './runtime.py'
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4))
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=60000, by_epoch=False)]
train_cfg = dict(by_epoch=False, max_iters=60000, val_interval=5000)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(checkpoint=dict(type='Checkpoints', interval=1000, keep=1))
