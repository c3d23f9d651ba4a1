"""CamVid at 360 x 480, 11 classes: random scale, crops of 352 x 480, mirror; tested whole."""
_transforms = [
    dict(type='RandomScale', scale_limit=(-0.5, 1.0), p=1.0),
    dict(type='PadIfNeeded', min_height=352, min_width=480, fill=(123, 116, 103), fill_mask=255),
    dict(type='RandomCrop', height=352, width=480),
    dict(type='HorizontalFlip', p=0.5),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    drop_last=True,
    dataset=dict(type='CamVid', data_root='datasets/camvid', split='train', transforms=_transforms),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    dataset=dict(type='CamVid', data_root='datasets/camvid', split='val', test_mode=True),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    dataset=dict(type='CamVid', data_root='datasets/camvid', split='test', test_mode=True),
)
