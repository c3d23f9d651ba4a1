"""The control of demo_adaptive: the same teachers with equal weights."""
_base_ = ['demo_adaptive.py']
model = dict(adaptive=False)
work_dir = 'work_dirs/reid_demo_uniform'
