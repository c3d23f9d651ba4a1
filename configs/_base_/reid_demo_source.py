"""A source of the re-identification demonstration at 64 x 32: 'kd-tasks data synth market1501 datasets/market1501_twin'."""
_epochs = 20
_transforms = [
    dict(type='HorizontalFlip', p=0.5),
    dict(type='PadIfNeeded', min_height=70, min_width=38, fill=(123, 116, 103)),
    dict(type='RandomCrop', height=64, width=32),
    dict(type='ColorJitter', brightness=(0.5, 1.5), contrast=(0.6, 1.4), saturation=(0.6, 1.4), hue=(-0.05, 0.05), p=0.9),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    sampler=dict(type='IdentitySampler', identities=8, pictures=4),
    dataset=dict(type='Market1501', split='train', transforms=_transforms),
)
test_dataloader = dict(batch_size=64, num_workers=0, dataset=dict(type='Market1501', split='test', test_mode=True))
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=2e-3, weight_decay=1e-2))
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True)]
train_cfg = dict(by_epoch=True, max_epochs=_epochs)
