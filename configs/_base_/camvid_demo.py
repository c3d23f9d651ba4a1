"""The synthetic twin of CamVid at 96 x 128, for runs on a CPU: 'kd-tasks data synth camvid datasets/camvid_twin'."""
_transforms = [
    dict(type='RandomScale', scale_limit=(-0.1, 0.4), p=1.0),
    dict(type='PadIfNeeded', min_height=96, min_width=128, fill=(123, 116, 103), fill_mask=255),
    dict(type='RandomCrop', height=96, width=128),
    dict(type='HorizontalFlip', p=0.5),
]
_test_transforms = [dict(type='Resize', height=96, width=128)]
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    drop_last=True,
    dataset=dict(type='CamVid', data_root='datasets/camvid_twin', split='train', transforms=_transforms),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=0,
    dataset=dict(type='CamVid', data_root='datasets/camvid_twin', split='val', test_mode=True,
                 transforms=_test_transforms),
)
test_dataloader = dict(
    batch_size=16,
    num_workers=0,
    dataset=dict(type='CamVid', data_root='datasets/camvid_twin', split='test', test_mode=True,
                 transforms=_test_transforms),
)
