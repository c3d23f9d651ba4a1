"""The parts of person re-identification: criterion, decoder, preprocessor, metric."""
task = 'reid'
model = dict(
    criterion=dict(type='ReIDLoss', label_smoothing=0.1, margin=0.3),
    decoder=dict(type='EmbeddingDecoder'),
    data_preprocessor=dict(type='ImagePreprocessor'),
)
test_evaluator = dict(type='ReIDMetric', distance='cosine')
test_cfg = dict()
