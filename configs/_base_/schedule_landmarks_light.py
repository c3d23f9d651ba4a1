"""A schedule for light landmark networks: 120 epochs of AdamW with warm-up and a cosine."""
_base_ = './runtime.py'
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-2))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, begin=0, end=500, by_epoch=False),
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=120)
