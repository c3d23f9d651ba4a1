"""Every shipped config gives a model that takes a training step; the paper-scale ones at a small picture size."""

import pytest
import torch

from kd_tasks import plugins
from kd_tasks.engine.build import is_distillation, without_pretrained
from kd_tasks.engine.compat import build_optimisers
from kd_tasks.engine.config import load_config
from kd_tasks.paths import config_names
from kd_tasks.registry import TASK_MODELS

SIZE = (64, 96)
PRETRAINED_PARTS = ("network", "student", "teacher")


def model_config(cfg):
    """The model of a config with random weights in place of those that one downloads or trains first."""
    model = without_pretrained(cfg["model"])
    for part in PRETRAINED_PARTS:
        if part in model:
            model[part] = {k: v for k, v in model[part].items() if k not in ("pretrained", "checkpoint")}
    return {**model, "input_size": SIZE} if is_distillation(cfg) else model


def batch_for(task):
    inputs = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8)
    if task == "classification":
        return {"inputs": inputs, "targets": {"label": torch.tensor([0, 1])}, "meta": [{}, {}]}
    mask = torch.randint(0, 11, (2, *SIZE), dtype=torch.uint8)
    return {"inputs": inputs, "targets": {"mask": mask}, "meta": [{}, {}]}


@pytest.mark.parametrize("name", config_names())
def test_one_step(name):
    plugins.load_all()
    cfg = load_config(name)
    model = TASK_MODELS.build(model_config(cfg), "model")
    log = model.train().train_step(batch_for(cfg.task), build_optimisers(model, cfg.optim_wrapper))
    assert all(value.isfinite() for value in log.values()), log
    terms = {key.partition(".")[2] for key in log if key.startswith("kd.")}
    assert terms == set(cfg.model.get("transfers", {}))


def test_a_feature_loss_on_an_image_folder_needs_few_lines():
    from kd_tasks.paths import find_config

    lines = find_config("classification/kd_r34_r18_imagefolder").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) <= 25
