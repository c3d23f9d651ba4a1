"""The target of the re-identification demonstration: 6 labelled identities, the other pictures unlabelled."""
_root = 'datasets/market1501_twin/target'
_transforms = [
    dict(type='HorizontalFlip', p=0.5),
    dict(type='PadIfNeeded', min_height=70, min_width=38, fill=(123, 116, 103)),
    dict(type='RandomCrop', height=64, width=32),
    dict(type='ColorJitter', brightness=(0.7, 1.3), contrast=(0.7, 1.3), saturation=(0.7, 1.3), hue=(-0.03, 0.03), p=0.8),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    sampler=dict(type='MixedIdentitySampler', unlabelled=24, identities=4, pictures=2),
    dataset=dict(type='Market1501', data_root=_root, split='train', labelled=6, transforms=_transforms),
)
test_dataloader = dict(
    batch_size=64, num_workers=0, dataset=dict(type='Market1501', data_root=_root, split='test', test_mode=True)
)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=2e-3, weight_decay=1e-2))
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True)]
train_cfg = dict(by_epoch=True, max_epochs=20)
