"""The control of skd_r101_espnet_cityscapes: the same student without a teacher."""
_base_ = './alone_r18_cityscapes.py'
model = dict(network=dict(_delete_=True, type='ESPNet', num_classes=19, decoder=False))
work_dir = 'work_dirs/alone_espnet_cityscapes'
