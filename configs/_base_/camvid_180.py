"""CamVid reduced to 180 x 240, 11 classes, for runs on a CPU: random scale, crops of 160 x 224, mirror; tested whole."""
_root = 'datasets/camvid'
_transforms = [
    dict(type='RandomScale', scale_limit=(-0.1, 0.6), p=1.0),
    dict(type='PadIfNeeded', min_height=160, min_width=224, fill=(123, 116, 103), fill_mask=255),
    dict(type='RandomCrop', height=160, width=224),
    dict(type='HorizontalFlip', p=0.5),
    dict(type='ColorJitter', brightness=(0.5, 1.5), contrast=(0.6, 1.4), saturation=(0.5, 1.5), hue=(-0.05, 0.05), p=0.8),
]
_test_transforms = [dict(type='Resize', height=180, width=240)]
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    drop_last=True,
    dataset=dict(type='CamVid', data_root=_root, split='train', transforms=_transforms),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    dataset=dict(type='CamVid', data_root=_root, split='val', test_mode=True, transforms=_test_transforms),
)
test_dataloader = dict(
    batch_size=8,
    num_workers=0,
    dataset=dict(type='CamVid', data_root=_root, split='test', test_mode=True, transforms=_test_transforms),
)
