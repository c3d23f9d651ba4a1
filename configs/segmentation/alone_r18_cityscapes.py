"""The control of skd_r101_r18_cityscapes: the same student without a teacher."""
_base_ = ['../_base_/segmentation.py', '../_base_/cityscapes_512.py',
          '../_base_/schedule_40k.py']
model = dict(
    type='TaskModel',
    network=dict(type='PSPNet', backbone='resnet18', num_classes=19, pretrained=True),
)
work_dir = 'work_dirs/alone_r18_cityscapes'
