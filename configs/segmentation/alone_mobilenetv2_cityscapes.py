"""The control of skd_r101_mobilenetv2_cityscapes: the same student without a teacher."""
_base_ = './alone_r18_cityscapes.py'
model = dict(network=dict(_delete_=True, type='PSPNet', backbone='mobilenet_v2', num_classes=19, pretrained=True))
work_dir = 'work_dirs/alone_mobilenetv2_cityscapes'
