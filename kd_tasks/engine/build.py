"""From a config to objects: defaults filled in, task models, loaders."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS
from torch import Tensor
from torch.utils.data import DataLoader

from kd_tasks import plugins
from kd_tasks.distiller import TEACHER_KEYS, Distiller
from kd_tasks.engine.checkpoints import load_network
from kd_tasks.engine.runner import DistillRunner
from kd_tasks.errors import UserError
from kd_tasks.registry import TASK_MODELS
from kd_tasks.task import TaskModel

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def with_defaults(cfg: Config) -> Config:
    """A copy of `cfg` in which what it leaves open is filled in: samplers, collation, the probe's size, the log."""
    full = copy.deepcopy(cfg)
    full.setdefault("default_scope", "mmengine")
    full.setdefault("randomness", {"seed": 0})
    for name in LOADERS:
        if full.get(name) is not None:
            full[name] = loader_with_defaults(full[name], shuffle=name == "train_dataloader")
    for name in ("val", "test"):
        if full.get(f"{name}_dataloader") is not None and full.get(f"{name}_evaluator") is not None:
            full.setdefault(f"{name}_cfg", {})
    if full.get("train_cfg") is not None:
        full.setdefault("log_processor", {"window_size": 1, "by_epoch": full.train_cfg.get("by_epoch", True)})
    add_needed_hooks(full)
    if is_distillation(full) and "input_size" not in full.model:
        size = training_size(full) or first_sample_size(full)
        if size is not None:
            full.model.input_size = size
    return full


def add_needed_hooks(cfg: Config) -> None:
    """Add to the custom hooks those without which the model cannot be trained, where the config names none of them."""
    hooks = list(cfg.get("custom_hooks") or [])
    named = {hook.get("type") for hook in hooks if isinstance(hook, Mapping)}
    needed = [dict(hook) for hook in getattr(_model_class(cfg), "needs_hooks", ()) if hook["type"] not in named]
    if needed and cfg.get("train_cfg") is not None:
        cfg.custom_hooks = [*hooks, *needed]


def _model_class(cfg: Mapping[str, Any]) -> type | None:
    """The registered class of the model, if it is one."""
    name = cfg["model"].get("type")
    return TASK_MODELS.get(name) if name in TASK_MODELS else None


def loader_with_defaults(loader: Mapping[str, Any], shuffle: bool) -> dict[str, Any]:
    """A loader config with our sampler, collation and worker seeding where it names none."""
    full = copy.deepcopy(dict(loader))
    full.setdefault("num_workers", 0)
    if "batch_sampler" not in full:
        full.setdefault("sampler", {"type": "EpochSampler", "shuffle": shuffle})
    full.setdefault("collate_fn", {"type": "collate_samples"})
    full.setdefault("worker_init_fn", {"type": "seed_worker"})
    full.setdefault("persistent_workers", full["num_workers"] > 0)
    return full


def is_distillation(cfg: Mapping[str, Any]) -> bool:
    """Whether the config trains a student with transfers."""
    return "student" in cfg["model"]


def training_size(cfg: Mapping[str, Any]) -> tuple[int, int] | None:
    """(H, W) of the training pictures; None if the config does not say so."""
    return picture_size((cfg.get("train_dataloader") or {}).get("dataset", {}))


def first_sample_size(cfg: Mapping[str, Any]) -> tuple[int, int] | None:
    """(H, W) of the first training picture after its transforms; None if it cannot be read."""
    try:
        inputs = DATASETS.build(copy.deepcopy((cfg.get("train_dataloader") or {})["dataset"]))[0]["inputs"]
    except (UserError, KeyError, IndexError):
        return None
    return (int(inputs.shape[-2]), int(inputs.shape[-1])) if isinstance(inputs, Tensor) else None


def deployed_size(cfg: Mapping[str, Any]) -> tuple[int, int] | None:
    """(H, W) of the test pictures; None if the config does not say so."""
    return picture_size((cfg.get("test_dataloader") or {}).get("dataset", {}))


def picture_size(dataset: Mapping[str, Any]) -> tuple[int, int] | None:
    """(H, W) of a data set's pictures by its last transform that sets a size, or else by its own `size`."""
    transformed, own = transformed_size(dataset.get("transforms", ())), dataset.get("size")
    if transformed is not None or own is None:
        return transformed
    sides = own if isinstance(own, list | tuple) else (own, own)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        return None
    return sides[0], sides[1]


def transformed_size(transforms: Iterable[Mapping[str, Any]]) -> tuple[int, int] | None:
    """(H, W) after the last of `transforms` that sets a size."""
    for transform in reversed(list(transforms)):
        if "height" in transform and "width" in transform:
            return int(transform["height"]), int(transform["width"])
        if isinstance(transform.get("size"), list | tuple) and len(transform["size"]) == 2:
            return int(transform["size"][0]), int(transform["size"][1])
    return None


def deployed_model_config(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the task model that is tested and exported: a distiller's student, or the model itself."""
    model = dict(cfg["model"])
    if "student" not in model:
        return {k: v for k, v in model.items() if k != "checkpoint"}
    shared = {k: model[k] for k in ("criterion", "decoder", "data_preprocessor") if k in model}
    choose = getattr(_model_class(cfg), "deployed_network", None)
    return {"type": "TaskModel", "network": model["student"] if choose is None else choose(model), **shared}


def build_task_model(cfg: Mapping[str, Any], checkpoint: str | None = None) -> TaskModel:
    """The deployed task model of a config, in eval mode, with the weights of `checkpoint` if given."""
    plugins.load_all()
    model: TaskModel = TASK_MODELS.build(without_pretrained(deployed_model_config(cfg)), "model")
    if checkpoint is not None:
        load_network(model.network, checkpoint)
    return model.eval()


def build_teacher_model(cfg: Mapping[str, Any], name: str | None = None) -> TaskModel:
    """A distillation config's teacher as a task model of its own, in eval mode.

    Raises:
        UserError: if the config has no such teacher.
    """
    plugins.load_all()
    model = cfg["model"]
    teacher = model.get("teacher") if name is None else (model.get("teachers") or {}).get(name)
    if teacher is None:
        raise UserError(f"model: this config has no teacher{f' {name!r}' if name else ''}.")
    network = {k: v for k, v in teacher.items() if k not in TEACHER_KEYS}
    shared = {k: model[k] for k in ("criterion", "decoder", "data_preprocessor") if k in model}
    cfg_alone = without_pretrained({"type": "TaskModel", "network": network, **shared})
    built: TaskModel = TASK_MODELS.build(cfg_alone, "model")
    if teacher.get("checkpoint"):
        load_network(built.network, teacher["checkpoint"], "model.teacher.checkpoint")
    return built.eval()


def build_distiller(cfg: Config) -> Distiller:
    """The distiller of a config, as training would build it, on the CPU."""
    plugins.load_all()
    return TASK_MODELS.build(with_defaults(cfg)["model"], "model")


def without_pretrained(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model config that downloads no weights, for networks whose weights come from a checkpoint."""
    full = copy.deepcopy(dict(model))
    if "pretrained" in full.get("network", {}):
        full["network"]["pretrained"] = False
    return full


def build_loader(loader: Mapping[str, Any], seed: int = 0, shuffle: bool = False) -> DataLoader:
    """The loader of a config such as `cfg.test_dataloader`."""
    plugins.load_all()
    return DistillRunner.build_dataloader(loader_with_defaults(loader, shuffle), seed=seed)
