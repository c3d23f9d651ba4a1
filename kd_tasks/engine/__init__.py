"""What the mmengine Runner needs beyond a model: configs and their check, loops, hooks, checkpoints, randomness."""
