"""The teacher on CamVid: PSPNet over ResNet-101, with ImageNet weights."""
_base_ = ['../_base_/segmentation.py', '../_base_/camvid_360.py', '../_base_/schedule_40k.py']
model = dict(
    type='TaskModel',
    network=dict(type='PSPNet', backbone='resnet101', num_classes=11, pretrained=True),
)
work_dir = 'work_dirs/teacher_r101_camvid'
