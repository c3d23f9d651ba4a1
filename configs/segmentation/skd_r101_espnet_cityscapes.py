"""Structured distillation to ESPNet-C, whose last joined features stand for the pyramid feature.

ESPNet-C gives 64 x 64 logits where PSPNet gives 64 x 64 too: both are an eighth of the crop.
"""
_base_ = './skd_r101_r18_cityscapes.py'
model = dict(
    student=dict(_delete_=True, type='ESPNet', num_classes=19, decoder=False),
    transfers=dict(pair=dict(_delete_=True, student='join3', teacher='psp', loss=dict(type='PairWise', scale=0.5),
                             weight=0.5)),
)
work_dir = 'work_dirs/skd_r101_espnet_cityscapes'
