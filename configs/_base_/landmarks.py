"""The parts of landmarks as heatmaps at a quarter of the picture: codec, criterion, decoder, preprocessor, metric."""
task = 'landmarks'
_codec = dict(type='DarkHeatmap', sigma=2.0)
model = dict(
    criterion=dict(type='HeatmapLoss', codec=_codec, input_size=(256, 256)),
    decoder=dict(type='LandmarkDecoder', codec=_codec),
    data_preprocessor=dict(type='ImagePreprocessor'),
)
test_evaluator = dict(type='LandmarkMetric')
test_cfg = dict()
