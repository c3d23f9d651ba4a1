"""Run folders and artefacts as they are found on disk, and which part each plays in a comparison."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from kd_tasks.engine.config import read_config
from kd_tasks.engine.files import digest, sha256_of
from kd_tasks.errors import UserError
from kd_tasks.evaluation.comparison import ALONE, DISTILLED, TEACHER

CONFIG, STUDENT, METRICS, SCALARS = "config.py", "student.pth", "metrics.json", "scalars.json"
ARTEFACT_SUFFIXES = (".onnx", ".pt2")
NOT_OF_THE_NETWORK = ("checkpoint", "pretrained", "mean", "std", "size", "prepare", "mode")
SIZE_KEYS = ("width", "depth", "width_multiplier", "alpha", "p", "q")
TRAINING_KEYS = ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler")


@dataclass(frozen=True)
class Run:
    """The folder of a finished run.

    Args:
        folder: with `config.py` and `student.pth`.

    Raises:
        UserError: if one of them is missing.
    """

    folder: Path

    def __post_init__(self) -> None:
        for name, made_by in ((CONFIG, "'kd-tasks train' begins"), (STUDENT, "'kd-tasks train' has finished")):
            if not (self.folder / name).is_file():
                raise UserError(
                    f"{self.folder}: this is no finished run: {name}, which is there once {made_by}, is missing."
                )

    @cached_property
    def cfg(self) -> Any:
        """The run's config."""
        return read_config(self.folder / CONFIG)

    @property
    def checkpoint(self) -> Path:
        """The deployed network's weights."""
        return self.folder / STUDENT

    @property
    def seed(self) -> int | None:
        """The seed that the config names."""
        return (self.cfg.get("randomness") or {}).get("seed")

    @property
    def distilled(self) -> bool:
        """Whether the run's model is a distiller: it has a student."""
        return "student" in self.cfg.model

    @property
    def network(self) -> dict[str, Any]:
        """Config of the deployed network, without its weights."""
        return architecture(self.cfg.model.get("student" if self.distilled else "network"))

    @property
    def teachers(self) -> list[Mapping[str, Any]]:
        """Configs of the teachers; empty for a run without."""
        return list(self.named_teachers.values())

    @property
    def named_teachers(self) -> dict[str, Mapping[str, Any]]:
        """Configs of the teachers by name; a single one is called `teacher`."""
        single = self.cfg.model.get("teacher")
        return {"teacher": single} if single else dict(self.cfg.model.get("teachers") or {})

    @property
    def recipe(self) -> str:
        """Names of the transfers, joined by a plus sign; after the kind of distiller, if it is not the plain one."""
        transfers = " + ".join(self.cfg.model.get("transfers") or {})
        kind = self.cfg.model.get("type")
        return transfers if kind == "Distiller" else ": ".join(filter(None, (kind, transfers)))

    @property
    def curves(self) -> Path | None:
        """The file of logged numbers, one JSON object a line; None if there is none."""
        found = [self.folder / SCALARS, *sorted(self.folder.glob(f"*/vis_data/{SCALARS}"), reverse=True)]
        return next((path for path in found if path.is_file()), None)


def is_artefact(path: Path) -> bool:
    """Whether `path` is an exported file."""
    return path.is_file() and path.suffix in ARTEFACT_SUFFIXES


def read_run(path: Path) -> Run:
    """The run in the folder `path`.

    Raises:
        UserError: if there is none, or `path` is a file.
    """
    if not path.exists():
        raise UserError(f"{path}: there is no such run folder or exported file.")
    if path.is_file():
        raise UserError(f"{path}: this is neither a run folder nor an exported file ({', '.join(ARTEFACT_SUFFIXES)}).")
    return Run(path)


def architecture(network: Mapping[str, Any] | None) -> dict[str, Any]:
    """A network's config without what does not change its shape: its weights and a teacher's own keys."""
    return {key: value for key, value in (network or {}).items() if key not in NOT_OF_THE_NETWORK}


def network_name(network: Mapping[str, Any]) -> str:
    """A network in words: its type and what tells it from others of it, such as `PSPNet resnet18`."""
    told = {key: value for key, value in network.items() if key not in ("type", "num_classes")}
    words = [value for value in told.values() if isinstance(value, str)]
    sizes = [f"{key} {told[key]}" for key in SIZE_KEYS if key in told]
    return " ".join([str(network.get("type", "network")), *words, *sizes])


def assign_roles(runs: Sequence[Run]) -> dict[Path, str]:
    """The role of each run, by folder.

    A distiller is `distilled`. Another run is `teacher` if a distiller's teacher was loaded from its folder, or else
    if it has the network of a teacher and not that of a student; it is `alone` if it has a student's network.
    Without any distilled run, every run is `alone`.

    Raises:
        UserError: if a run's network is neither a student's nor a teacher's.
    """
    distilled = [run for run in runs if run.distilled]
    return {run.folder: DISTILLED if run.distilled else _role_beside(run, distilled) for run in runs}


def _role_beside(run: Run, distilled: Sequence[Run]) -> str:
    teachers = [teacher for other in distilled for teacher in other.teachers]
    if any(_loaded_from(run, teacher) for teacher in teachers):
        return TEACHER
    if not distilled or any(run.network == other.network for other in distilled):
        return ALONE
    if any(run.network == architecture(teacher) for teacher in teachers):
        return TEACHER
    students = ", ".join(dict.fromkeys(network_name(other.network) for other in distilled))
    raise UserError(
        f"{run.folder}: its network ({network_name(run.network)}) is neither the student of a distilled run "
        f"({students}) nor a teacher's, so it cannot be compared with them. Leave it out."
    )


def teacher_name(run: Run, runs: Sequence[Run]) -> str:
    """The name that distilled runs with several teachers give to `run`; empty if none was taught by it."""
    several = [other.named_teachers for other in runs if len(other.named_teachers) > 1]
    return next((name for named in several for name, cfg in named.items() if _loaded_from(run, cfg)), "")


def recipe_name(run: Run, runs: Sequence[Run]) -> str:
    """The recipe of a distilled run, and the model's options by which it differs from `runs` of the same recipe."""
    peers = [_options(other) for other in runs if other.distilled and other.recipe == run.recipe]
    told = [f"{key} {value}" for key, value in _options(run).items() if any(p.get(key) != value for p in peers)]
    return ", ".join([run.recipe, *told])


def _options(run: Run) -> dict[str, Any]:
    """Plain values beside the parts of a model."""
    plain = {key: value for key, value in run.cfg.model.items() if isinstance(value, bool | int | float | str)}
    return {key: value for key, value in plain.items() if key not in ("type", "checkpoint")}


def _loaded_from(run: Run, teacher: Mapping[str, Any]) -> bool:
    if not teacher.get("checkpoint"):
        return False
    checkpoint = Path(teacher["checkpoint"]).expanduser().resolve()
    folder = run.folder.resolve()
    return checkpoint == folder or checkpoint.parent == folder


def trained_unlike(first: Run, second: Run) -> list[str]:
    """Where two runs were trained differently, each as `train_cfg.max_epochs: 10 and 20`; empty if alike."""
    return [
        difference
        for key in TRAINING_KEYS
        for difference in _differences(_plain(first.cfg.get(key)), _plain(second.cfg.get(key)), key)
    ]


def _differences(first: Any, second: Any, where: str) -> list[str]:
    if isinstance(first, dict) and isinstance(second, dict):
        keys = dict.fromkeys([*first, *second])
        return [d for key in keys for d in _differences(first.get(key), second.get(key), f"{where}.{key}")]
    return [] if first == second else [f"{where}: {first!r} and {second!r}"]


def _plain(value: Any) -> Any:
    """Configs as plain dicts and lists, so that they compare by value."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def same_data(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two dataset configs read the same samples; how they transform the images does not matter."""
    return _data_identity(first) == _data_identity(second)


def _data_identity(dataset: Mapping[str, Any]) -> dict[str, Any]:
    identity = {key: _plain(value) for key, value in dataset.items() if key != "transforms"}
    if "data_root" in identity:
        identity["data_root"] = Path(identity["data_root"]).expanduser().resolve()
    return identity


@dataclass(frozen=True)
class KnownMetrics:
    """What `metrics.json` says of a checkpoint; empty where it says nothing."""

    metrics: dict[str, float] = field(default_factory=dict)
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    note: str = ""


def read_metrics(folder: Path, weights: Path, dataset: Mapping[str, Any] | None = None) -> KnownMetrics:
    """The numbers in the folder's `metrics.json`, if they are those of the file `weights`.

    They are if the recorded SHA-256 is the file's or, where none is recorded, if the file is not newer. Numbers that
    are null, such as the metric of a class without pixels, come as not-a-number.

    Args:
        folder: of the run.
        weights: the checkpoint.
        dataset: config of the test data, if the numbers must be of these data after these transforms.
    """
    file = folder / METRICS
    if not file.is_file() or not weights.is_file():
        return KnownMetrics()
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        recorded = known.get("checkpoint_sha256")
        fresh = sha256_of(weights) == recorded if recorded else weights.stat().st_mtime <= file.stat().st_mtime
        fresh = fresh and (dataset is None or known.get("dataset_sha256") in (None, digest(dataset)))
        per_class = {name: numbers(row) for name, row in known.get("per_class", {}).items()}
        note = str(known.get("note", ""))
        return KnownMetrics(numbers(known["metrics"]), per_class, note) if fresh else KnownMetrics()
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError):
        return KnownMetrics()


def finite(value: Any) -> Any:
    """`value` for JSON: a number that is not finite becomes null."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """A row of JSON as floats; null becomes not-a-number."""
    return {name: math.nan if value is None else float(value) for name, value in row.items()}


def read_scalars(path: Path) -> list[dict[str, Any]]:
    """The logged numbers of a run, one dict a line; a last line that is cut short is left out."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [entry for entry in entries if isinstance(entry, dict)]
