"""Criterion, decoder, metric and preprocessing of every segmentation run; the data set's base adds the pictures."""
task = 'segmentation'
model = dict(
    criterion=dict(type='SegmentationLoss', aux_weight=0.4),
    decoder=dict(type='SegmentationDecoder'),
    data_preprocessor=dict(type='ImagePreprocessor'),
)
val_evaluator = dict(type='SegmentationMetric')
test_evaluator = dict(type='SegmentationMetric')
