"""Before a training: what goes in, whether the teacher is worth listening to, how strongly each term pulls."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, cast

import torch
from mmengine.config import Config
from mmengine.device import get_device
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader

from kd_tasks import plugins
from kd_tasks.distiller import Distiller
from kd_tasks.engine.build import (
    build_distiller,
    build_loader,
    build_task_model,
    build_teacher_model,
    is_distillation,
    training_size,
    with_defaults,
)
from kd_tasks.engine.classes import class_order, refuse_missing_classes, refuse_other_label_order, spare_classes
from kd_tasks.engine.config_check import check_config
from kd_tasks.engine.evaluate import EvaluationResult, evaluate
from kd_tasks.registry import TASK_MODELS
from kd_tasks.taps import list_taps
from kd_tasks.task import TaskModel

STRONG, WEAK = 30.0, 0.003
DEFAULT_SIZE = (64, 64)


# --- Taps ------------------------------------------------------------------------------------------------------------


def tap_tables(cfg: Config) -> list[Table]:
    """Every tap of the student and of each teacher with its shape, one table a network; needs no data, no weights."""
    plugins.load_all()
    size = training_size(cfg) or tuple(cfg.model.get("input_size", DEFAULT_SIZE))
    probe = torch.zeros(1, 3, *size)
    return [_tap_table(name, network, probe) for name, network in _networks(cfg)]


def _networks(cfg: Config) -> Iterator[tuple[str, nn.Module]]:
    yield "student" if is_distillation(cfg) else "network", build_task_model(cfg).network
    single, several = cfg.model.get("teacher"), cfg.model.get("teachers") or {}
    if single is not None:
        yield "teacher", build_teacher_model(_without_weights(cfg)).network
    for name in several:
        yield f"teacher {name!r}", build_teacher_model(_without_weights(cfg), name).network


def _without_weights(cfg: Config) -> Config:
    model = cfg.model.to_dict()
    for teacher in [model.get("teacher"), *(model.get("teachers") or {}).values()]:
        if teacher is not None:
            teacher.pop("checkpoint", None)
    return Config({"model": model})


def _tap_table(name: str, network: nn.Module, probe: Tensor) -> Table:
    height, width = probe.shape[-2:]
    table = Table(title=f"Taps of the {name} for an image of {height} x {width}", title_justify="left")
    table.add_column("tap", no_wrap=True)
    table.add_column("kind")
    table.add_column("shape")
    for tap in list_taps(network, probe):
        shape = " x ".join(["N", *map(str, tap.shape[1:])])
        often = f" (runs {tap.calls} times, so it cannot be tapped)" if tap.calls > 1 else ""
        table.add_row(tap.name, tap.kind, shape + often)
    return table


# --- Pre-flight ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pull:
    """What one term of the objective does to the student on one batch.

    Attributes:
        name: `task.NAME` or `kd.NAME`.
        value: the weighted term.
        gradient: norm of its gradient in all of the student's parameters.
        alignment: cosine between its gradient and that of the task losses, in -1..1; not-a-number for a task loss.
        moment: the iteration at which it was measured: 0, or where a transfer begins that is off at the start.
    """

    name: str
    value: float
    gradient: float
    alignment: float = math.nan
    moment: int = 0


@dataclass
class Preflight:
    """What was found.

    Attributes:
        data: `(split, samples, in words)` for each loader.
        teachers: the metrics of each teacher on a few batches; of the student as it starts under `student`.
        pulls: one entry a term of the objective.
        warnings: what one should look at before one trains.
    """

    data: list[tuple[str, int, str]] = field(default_factory=list)
    teachers: dict[str, EvaluationResult] = field(default_factory=dict)
    pulls: list[Pull] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def tables(self) -> list[Table]:
        """Everything found, for a terminal."""
        return [table for table in (self._data_table(), self._teacher_table(), self._pull_table()) if table.row_count]

    def _data_table(self) -> Table:
        table = _titled("Data", "loader", "samples", "first batch")
        for split, samples, words in self.data:
            table.add_row(split, str(samples), words)
        return table

    def _teacher_table(self) -> Table:
        names = list(dict.fromkeys(name for result in self.teachers.values() for name in result.metrics))
        table = _titled("A few test batches", "model", *names)
        for model, result in self.teachers.items():
            table.add_row(model, *(f"{result.metrics.get(name, math.nan):.2f}" for name in names))
        return table

    def _pull_table(self) -> Table:
        table = _titled(
            "Terms of the objective on one batch, weights included", "term", "value", "gradient norm", "cosine to task"
        )
        for pull in self.pulls:
            name = pull.name + (f" (at iteration {pull.moment})" if pull.moment else "")
            cosine = f"{pull.alignment:+.2f}" if math.isfinite(pull.alignment) else ""
            table.add_row(name, f"{pull.value:.4g}", f"{pull.gradient:.4g}", cosine)
        return table


def preflight(cfg: Config, batches: int = 4) -> Preflight:
    """Try what `cfg` describes without training: config, data, shapes, teachers, every term of the objective.

    Args:
        cfg: the config of a training.
        batches: how many test batches the teachers are measured on.

    Raises:
        UserError: for a fault of config or data that would stop the training.
    """
    plugins.load_all()
    check_config(cfg)
    found = Preflight()
    loaders = {name: build_loader(cfg[f"{name}_dataloader"]) for name in ("train", "val", "test") if _has(cfg, name)}
    for name, loader in loaders.items():
        found.data.append((name, len(cast(Any, loader.dataset)), _batch_in_words(next(iter(loader)))))
    metainfo = getattr(loaders["train"].dataset, "metainfo", None) if "train" in loaders else None
    refuse_missing_classes(cfg["model"], metainfo)
    if "test" in loaders and cfg.get("test_evaluator") is not None:
        found.teachers = _measured_teachers(cfg, loaders["test"], batches)
    if "train" in loaders:
        batch = next(iter(build_loader(cfg["train_dataloader"], shuffle=True)))
        found.pulls = _pulls(cfg, batch, class_order(metainfo))
    found.warnings = [
        *spare_classes(cfg["model"], metainfo),
        *_teacher_warnings(cfg, found.teachers),
        *_pull_warnings(found.pulls),
    ]
    return found


def _has(cfg: Mapping[str, Any], name: str) -> bool:
    return cfg.get(f"{name}_dataloader") is not None


def _batch_in_words(batch: Mapping[str, Any]) -> str:
    targets = ", ".join(f"{name} {_tensor_in_words(value)}" for name, value in batch["targets"].items())
    return f"images {_tensor_in_words(batch['inputs'])}; {targets}"


def _tensor_in_words(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"{len(value)} of different sizes" if isinstance(value, Sequence) else type(value).__name__
    shape = " x ".join(map(str, value.shape))
    return f"{shape}, {value.min():g} to {value.max():g}" if value.numel() else f"{shape}, empty"


# --- Teachers --------------------------------------------------------------------------------------------------------


class _FewBatches:
    """A few batches of a loader, which an evaluation takes for the whole of it.

    They are the first ones, unless the data set has a `part(count)`: places of about so many samples that can be
    evaluated by themselves.
    """

    def __init__(self, loader: DataLoader, count: int) -> None:
        part = getattr(loader.dataset, "part", None)
        self.batches = list(islice(loader, count) if part is None else _batches_of(loader, part, count))
        self.dataset = _Counted(sum(len(batch["meta"]) for batch in self.batches), loader.dataset)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _batches_of(loader: DataLoader, part: Callable[[int], list[int]], count: int) -> Iterator[Any]:
    size = loader.batch_size or 1
    places = part(count * size)
    for begin in range(0, len(places), size):
        yield loader.collate_fn([loader.dataset[place] for place in places[begin : begin + size]])


class _Counted:
    def __init__(self, length: int, dataset: Any) -> None:
        self.length = length
        self.metainfo = getattr(dataset, "metainfo", None)

    def __len__(self) -> int:
        return self.length


def _measured_teachers(cfg: Config, loader: DataLoader, count: int) -> dict[str, EvaluationResult]:
    few = cast(DataLoader, _FewBatches(loader, count))
    models: dict[str, TaskModel] = {}
    if cfg.model.get("teacher") is not None:
        models["teacher"] = build_teacher_model(cfg)
    models |= {f"teacher {name}": build_teacher_model(cfg, name) for name in cfg.model.get("teachers") or {}}
    if models:
        models["student as it starts"] = build_task_model(cfg, cfg.model.get("checkpoint"))
    return {
        name: evaluate(model, few, cfg["test_evaluator"], get_device(), f"Testing the {name}")
        for name, model in models.items()
    }


def _teacher_warnings(cfg: Config, measured: Mapping[str, EvaluationResult]) -> list[str]:
    student = next((result for name, result in measured.items() if name.startswith("student")), None)
    if student is None:
        return []
    metric, start = student.main
    return [
        f"the {name} reaches {result.main[1]:.2f} {metric} on these batches and the student as it starts {start:.2f}: "
        "the checkpoint, the classes or the normalisation (mean, std) of the teacher may be wrong."
        for name, result in measured.items()
        if result is not student and not result.main[1] > start
    ]


# --- Terms -----------------------------------------------------------------------------------------------------------


def _pulls(cfg: Config, batch: Mapping[str, Any], classes: Sequence[str]) -> list[Pull]:
    torch.manual_seed((cfg.get("randomness") or {}).get("seed") or 0)
    if not is_distillation(cfg):
        return _pulls_at(TASK_MODELS.build(with_defaults(cfg)["model"], "model").to(get_device()), batch, 0)
    model = build_distiller(cfg).to(get_device())
    if not isinstance(model, Distiller):
        return _pulls_at(model, batch, 0)
    refuse_other_label_order(model, classes)
    length = len(build_loader(cfg["train_dataloader"]))
    found: dict[str, Pull] = {}
    for moment in sorted({0, *_beginnings(model, length)}):
        model.set_moment(moment, length)
        found = {pull.name: pull for pull in _pulls_at(model, batch, moment)} | found
    return sorted(found.values(), key=lambda pull: (not pull.name.startswith("task."), pull.moment))


def _beginnings(model: Distiller, length: int) -> list[int]:
    """For each transfer that is off at the start, the first of a few iterations at which it acts."""
    horizon = 1000 * length
    probes = sorted({0, 1, *(length * n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500)), horizon})
    found = []
    for transfer in cast(Any, model.transfers).values():
        begin = math.ceil(transfer.begin.iteration(length))
        acting = (i for i in sorted({begin, begin + 1, *probes}) if transfer.strength(i, length) != 0)
        found += list(islice(acting, 1))
    return found


def _pulls_at(model: TaskModel, batch: Mapping[str, Any], moment: int) -> list[Pull]:
    model.train()
    inputs = model.data_preprocessor(dict(batch), True)
    losses = model(**inputs, mode="loss")
    weights = [p for p in model.network.parameters() if p.requires_grad]
    gradients = {name: _gradient(value, weights) for name, value in losses.items()}
    task = [gradient for name, gradient in gradients.items() if not name.startswith("kd.")]
    direction = torch.stack(task).sum(0) if task else torch.zeros(1)
    return [
        Pull(
            name,
            float(value.detach()),
            float(gradients[name].norm()),
            _cosine(name, gradients[name], direction),
            moment,
        )
        for name, value in losses.items()
    ]


def _gradient(value: Tensor, weights: Sequence[Tensor]) -> Tensor:
    found = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
    pairs = zip(found, weights, strict=True)
    return torch.cat([(torch.zeros_like(w) if g is None else g).flatten() for g, w in pairs])


def _cosine(name: str, gradient: Tensor, direction: Tensor) -> float:
    norms = gradient.norm() * direction.norm()
    if not name.startswith("kd.") or norms == 0:
        return math.nan
    return float(gradient @ direction / norms)


def _pull_warnings(pulls: Sequence[Pull]) -> list[str]:
    task = math.hypot(*(pull.gradient for pull in pulls if not pull.name.startswith("kd.")))
    return [warning for pull in pulls if (warning := _pull_warning(pull, task))]


def _pull_warning(pull: Pull, task: float) -> str:
    if not math.isfinite(pull.value) or not math.isfinite(pull.gradient):
        return f"{pull.name} is {pull.value} with a gradient of {pull.gradient}."
    if pull.gradient == 0:
        return f"{pull.name} gives the student no gradient on this batch."
    if not pull.name.startswith("kd.") or task == 0:
        return ""
    ratio = pull.gradient / task
    if ratio > STRONG:
        return f"{pull.name} pulls {ratio:.0f} times as hard as the task losses; its weight may be too large."
    if ratio < WEAK:
        return f"{pull.name} pulls {1 / ratio:.0f} times less than the task losses; its weight may be too small."
    return ""


def _titled(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table
