"""Structured distillation to PSPNet over MobileNetV2."""
_base_ = './skd_r101_r18_cityscapes.py'
model = dict(student=dict(_delete_=True, type='PSPNet', backbone='mobilenet_v2', num_classes=19, pretrained=True))
work_dir = 'work_dirs/skd_r101_mobilenetv2_cityscapes'
