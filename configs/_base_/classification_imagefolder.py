"""Data, task parts and schedule for a folder of images, `<data_root>/<split>/<class>/*.jpg`."""

task = 'classification'
model = dict(
    criterion=dict(type='CrossEntropy', label_smoothing=0.0),
    decoder=dict(type='TopKDecoder', k=5),
    data_preprocessor=dict(type='ImagePreprocessor'),
)

_root = 'datasets/imagefolder'
_train_transforms = [
    dict(type='RandomResizedCrop', size=(224, 224), scale=(0.25, 1.0)),
    dict(type='HorizontalFlip', p=0.5),
]
_test_transforms = [dict(type='SmallestMaxSize', max_size=256), dict(type='CenterCrop', height=224, width=224)]

train_dataloader = dict(
    batch_size=64,
    num_workers=4,
    dataset=dict(type='ImageFolder', data_root=_root, split='train', transforms=_train_transforms),
)
val_dataloader = test_dataloader = dict(
    batch_size=64,
    num_workers=4,
    dataset=dict(type='ImageFolder', data_root=_root, split='val', transforms=_test_transforms, test_mode=True),
)
val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1, 5))

train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=5, end=100, T_max=95, convert_to_iter_based=True),
]
