# A short schedule for runs on a CPU; a config sets max_epochs and the end of the decay.
_base_ = './runtime.py'
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=5e-4))
val_cfg = dict()
test_cfg = dict()
