"""What every training shares. A config that inherits it names model, data, schedule and work_dir."""
default_scope = 'mmengine'
randomness = dict(seed=0, deterministic=False)
default_hooks = dict(
    runtime_info=dict(type='TrainingScalars', interval=10),
    timer=dict(type='IterTimerHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    logger=dict(type='LoggerHook', interval=10),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='Checkpoints', interval=1, keep=1),
)
env_cfg = dict(cudnn_benchmark=True)
log_level = 'INFO'
load_from = None
resume = False
