"""The parts of landmarks as in SBR and TS3 (Dong et al.): peaks of 4 pixels of the picture, sums over pixels."""
_base_ = './landmarks.py'
_codec = dict(_delete_=True, type='PeakHeatmap', sigma=4.0)
model = dict(criterion=dict(codec=_codec, reduction='annotated'), decoder=dict(codec=_codec))
