"""The teacher: ResNet-34 from ImageNet weights."""

_base_ = ['../_base_/runtime.py', '../_base_/classification_imagefolder.py']

model = dict(
    type='TaskModel',
    network=dict(type='TorchvisionClassifier', architecture='resnet34', num_classes=1000, pretrained=True),
)
optim_wrapper = dict(optimizer=dict(lr=0.01))
work_dir = 'work_dirs/classification/teacher_r34_imagefolder'
