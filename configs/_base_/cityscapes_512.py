"""Cityscapes, 19 classes: random scale 0.5 to 2.1, crops of 512 x 512, mirror; tested whole at 1024 x 2048."""
_transforms = [
    dict(type='RandomScale', scale_limit=(-0.5, 1.1), p=1.0),
    dict(type='PadIfNeeded', min_height=512, min_width=512, fill=(123, 116, 103), fill_mask=255),
    dict(type='RandomCrop', height=512, width=512),
    dict(type='HorizontalFlip', p=0.5),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    drop_last=True,
    dataset=dict(type='Cityscapes', data_root='datasets/cityscapes', split='train', transforms=_transforms),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    dataset=dict(type='Cityscapes', data_root='datasets/cityscapes', split='val', test_mode=True),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    dataset=dict(type='Cityscapes', data_root='datasets/cityscapes', split='val', test_mode=True),
)
