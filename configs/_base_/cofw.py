"""COFW at 256 x 256: mirror, rotation, scale, colours."""
_transforms = [
    dict(type='HorizontalFlip', p=0.5),
    dict(type='Affine', rotate=(-30, 30), scale=(0.8, 1.2), translate_percent=(-0.05, 0.05), p=0.8),
    dict(type='ColorJitter', brightness=(0.7, 1.3), contrast=(0.7, 1.3), saturation=(0.7, 1.3), hue=(0.0, 0.0), p=0.8),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=4,
    drop_last=True,
    dataset=dict(type='COFW', data_root='datasets/cofw', split='train', size=(256, 256), margin=0.2,
                 transforms=_transforms),
)
test_dataloader = dict(
    batch_size=32,
    num_workers=4,
    dataset=dict(type='COFW', data_root='datasets/cofw', split='test', size=(256, 256), test_mode=True),
)
