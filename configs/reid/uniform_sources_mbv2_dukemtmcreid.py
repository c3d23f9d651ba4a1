"""The control of adaptive_sources_mbv2_dukemtmcreid: the same teachers with equal weights."""
_base_ = './adaptive_sources_mbv2_dukemtmcreid.py'
model = dict(adaptive=False)
work_dir = 'work_dirs/uniform_sources_mbv2_dukemtmcreid'
