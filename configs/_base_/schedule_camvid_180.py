"""Thirty epochs of AdamW with a polynomial decay, for runs on a CPU."""
_base_ = './runtime.py'
_epochs = 30
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=4e-3, weight_decay=1e-2))
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=_epochs, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=_epochs, val_interval=_epochs)
val_cfg = dict()
test_cfg = dict()
