"""Criterion and preprocessor of every lane run; the data set's base adds pictures, decoder and metric.

Pictures are normalised as ImageNet's, for the sake of weights from there; the authors of ENet-SAD use the means and
deviations of CULane.
"""
task = 'lanes'
model = dict(
    criterion=dict(type='LaneLoss', background_weight=0.4, iou_weight=0.1, exist_weight=0.1),
    data_preprocessor=dict(type='ImagePreprocessor'),
)
