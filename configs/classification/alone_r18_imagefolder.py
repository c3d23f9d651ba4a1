"""ResNet-18 without a teacher: what the distilled one is compared with."""

_base_ = ['../_base_/runtime.py', '../_base_/classification_imagefolder.py']

model = dict(
    type='TaskModel',
    network=dict(type='TorchvisionClassifier', architecture='resnet18', num_classes=1000),
)
work_dir = 'work_dirs/classification/alone_r18_imagefolder'
