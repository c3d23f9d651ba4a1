"""The parts of landmarks as coordinates: wing loss, decoder, preprocessor, metric."""
task = 'landmarks'
model = dict(
    criterion=dict(type='CoordinateLoss', kind='wing', input_size=(256, 256)),
    decoder=dict(type='LandmarkDecoder'),
    data_preprocessor=dict(type='ImagePreprocessor'),
)
test_evaluator = dict(type='LandmarkMetric')
test_cfg = dict()
