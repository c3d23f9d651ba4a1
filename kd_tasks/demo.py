"""The whole job on a synthetic data set: teacher, student alone, distilled student, export, evaluation, report card."""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config

from kd_tasks import plugins
from kd_tasks.deploy.artefact import read_manifest
from kd_tasks.engine.build import build_task_model, build_teacher_model, training_size
from kd_tasks.engine.checkpoints import STUDENT_FILE, latest_checkpoint
from kd_tasks.engine.config import config_text, load_config
from kd_tasks.engine.files import sha256_of, write_json
from kd_tasks.engine.progress import console
from kd_tasks.engine.train import METRICS_FILE, train
from kd_tasks.errors import UserError
from kd_tasks.evaluation.compare import compare
from kd_tasks.evaluation.comparison import Comparison
from kd_tasks.evaluation.cost import multiply_adds
from kd_tasks.evaluation.deployed import export_checkpoint
from kd_tasks.evaluation.measure import measure_artefact
from kd_tasks.report.card import write_card
from kd_tasks.vision.twins import write_twin

DATA, RECORD = "data", "stage.json"
ARTEFACTS = ("student.onnx", "student.int8.onnx", "student.pt2")
COMPARISON, CARD = "comparison.json", "report.html"
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
BACKWARD = 2.0

Announce = Callable[[str], None]


@dataclass(frozen=True)
class DemoResult:
    """What a demo made: the comparison, the report card, and the folders of the runs."""

    comparison: Comparison
    card: Path
    runs: tuple[Path, ...]


@dataclass(frozen=True)
class Stage:
    """One step of the job.

    Attributes:
        title: what is announced.
        work: what is done; answers whether it had to be done at all.
        effort: relative time that it takes, for the estimate of the time left.
    """

    title: str
    work: Callable[[], bool]
    effort: float


def run_demo(
    task: str, out: str | Path, seeds: int = 1, first_seed: int = 0, progress: Announce | None = None
) -> DemoResult:
    """Teach a student on the plugin's synthetic data, and show what the teaching brought.

    The teacher is trained once. For each seed the student is trained alone and distilled, from the same initial
    weights, on the same data in the same order, for as many steps, with the same optimiser; the distilled student is
    exported and the files are evaluated. Finished stages are kept: the same call goes on where an earlier one stopped.

    Args:
        task: name of a plugin that declares a demo.
        out: where everything is written.
        seeds: how many seeds, counted up from `first_seed`.
        first_seed: of the students; the teacher has the seed of its config.
        progress: is told each stage as it begins; printed if not given.

    Raises:
        UserError: if the plugin has no demo, or `out` holds something else.
    """
    demo = _Demo(task, Path(out), range(first_seed, first_seed + seeds))
    _go_through(demo.stages(), progress or _print)
    comparison = compare(demo.compared())
    comparison.save(demo.out / COMPARISON)
    (progress or _print)("Drawing the report card")
    return DemoResult(comparison, write_card(comparison, demo.out / CARD), tuple(demo.runs()))


# --- Stages ----------------------------------------------------------------------------------------------------------


@dataclass
class _Demo:
    """The stages of one demo and where each leaves what it makes."""

    task: str
    out: Path
    seeds: range
    plan: plugins.Demo = field(init=False)

    def __post_init__(self) -> None:
        declared = plugins.get(self.task).demo
        if declared is None:
            able = ", ".join(plugin.name for plugin in plugins.discover() if plugin.demo is not None)
            raise UserError(f"the plugin {self.task!r} declares no demo. Plugins that do: {able}.")
        self.plan = declared
        plugins.load_all()

    @property
    def several(self) -> bool:
        """Whether there are several teachers."""
        return not isinstance(self.plan.teacher, str)

    def teacher(self, name: str) -> Path:
        return self.out / (f"teacher_{name}" if self.several else name)

    def alone(self, seed: int) -> Path:
        return self.out / f"alone_{seed}"

    def variant(self, name: str, seed: int) -> Path:
        return self.out / f"{name}_{seed}"

    def deployed(self, seed: int) -> Path:
        """The distilled student that is exported."""
        return self.variant(next(iter(self.plan.variants)), seed)

    def runs(self) -> Iterator[Path]:
        """The folders of all runs."""
        yield from (self.teacher(name) for name in self.plan.teachers)
        for seed in self.seeds:
            yield self.alone(seed)
            yield from (self.variant(name, seed) for name in self.plan.variants)

    def compared(self) -> list[Path]:
        """Everything that is compared."""
        artefacts = [self.deployed(seed) / name for seed in self.seeds for name in ARTEFACTS]
        return [*self.runs(), *artefacts]

    def stages(self) -> list[Stage]:
        """The stages in their order."""
        twin = self.plan.twin
        stages = [Stage(f"Data: the synthetic twin {twin!r}", partial(self.write_data, twin), 0.0)] if twin else []
        for name, config in self.plan.teachers.items():
            folder = self.teacher(name)
            title = f"Teacher {name!r}" if self.several else "Teacher"
            stages.append(self.training(title, self.config(config, folder, None), folder))
        for seed in self.seeds:
            alone = self.config(self.plan.alone, self.alone(seed), seed)
            distilled = {name: self.taught(name, seed) for name in self.plan.variants}
            stages.append(self.training(f"Student alone, seed {seed}", alone, self.alone(seed)))
            for name, cfg in distilled.items():
                title = "Student distilled" if name == "distilled" else f"Student distilled, {name}"
                stages.append(self.training(f"{title}, seed {seed}", cfg, self.variant(name, seed)))
            deployed = next(iter(distilled.values()))
            stages += [
                Stage(f"Export, seed {seed}: ONNX, int8, pt2", partial(self.export, deployed, seed), 0.0),
                Stage(f"Evaluation of the exported files, seed {seed}", partial(self.evaluate, seed), 0.0),
            ]
        return stages

    def taught(self, variant: str, seed: int) -> Config:
        """The config of a distilled student, with the demo's teachers if it has any."""
        model = load_config(self.plan.variants[variant]).model
        taught = "teacher" in model or "teachers" in model
        weights = {name: str(self.teacher(name) / STUDENT_FILE) for name in self.plan.teachers if taught}
        places = {name: f"model.teachers.{name}" if self.several else "model.teacher" for name in weights}
        options = {f"{places[name]}.checkpoint": file for name, file in weights.items()}
        return self.config(self.plan.variants[variant], self.variant(variant, seed), seed, options)

    def config(self, name: str, folder: Path, seed: int | None, options: Mapping[str, Any] | None = None) -> Config:
        """A shipped config with the demo's folders and seed, and further `options`."""
        cfg = load_config(name)
        options = {"work_dir": str(folder), **(options or {})}
        if self.plan.twin:
            roots = {k: cfg[k].dataset.data_root for k in LOADERS if cfg.get(k) is not None}
            options |= {f"{k}.dataset.data_root": str(self.data(root)) for k, root in roots.items()}
        if seed is not None:
            options["randomness.seed"] = seed
        return load_config(name, options)

    def data(self, root: str) -> Path:
        """Where the demo keeps the data that a config reads from `root`."""
        usual = Path("datasets") / f"{self.plan.twin}_twin"
        written = self.out / DATA
        return written / Path(root).relative_to(usual) if Path(root).is_relative_to(usual) else written

    def write_data(self, twin: str) -> bool:
        """Write the synthetic twin, whole or not at all."""
        data, partial = self.out / DATA, self.out / f"{DATA}.partial"
        if data.is_dir():
            return False
        shutil.rmtree(partial, ignore_errors=True)
        write_twin(twin, partial)
        partial.rename(data)
        return True

    def training(self, title: str, cfg: Config, folder: Path) -> Stage:
        return Stage(title, partial(train_once, cfg, folder, title), effort_of(cfg))

    def export(self, cfg: Config, seed: int) -> bool:
        """Export the distilled student of `seed` in every format."""
        folder = self.deployed(seed)
        if all(_is_of(folder / name, folder / STUDENT_FILE) for name in ARTEFACTS):
            return False
        export_checkpoint(cfg, folder, "onnx", int8=True)
        export_checkpoint(cfg, folder, "pt2")
        return True

    def evaluate(self, seed: int) -> bool:
        """Evaluate the exported files of `seed`; what was measured before is kept."""
        measured = [measure_artefact(self.deployed(seed) / name)[1] for name in ARTEFACTS]
        return any(measured)


def train_once(cfg: Config, folder: Path, title: str) -> bool:
    """Train `cfg` unless `folder` already holds its finished run; go on with a run that was broken off.

    Returns:
        Whether there was anything to train.

    Raises:
        UserError: if `folder` holds something that no demo wrote.
    """
    record = {"config": config_text(cfg), "teacher": _teacher_hash(cfg)}
    known = _record_of(folder)
    if folder.is_dir() and any(folder.iterdir()) and known is None:
        raise UserError(f"{folder}: this folder holds something else. Choose another --out, or move it away.")
    if known == record and (folder / STUDENT_FILE).is_file() and (folder / METRICS_FILE).is_file():
        return False
    if known is not None and known != record:
        shutil.rmtree(folder)
    write_json(folder / RECORD, record)
    train(cfg, resume=latest_checkpoint(folder) is not None, title=title)
    return True


def effort_of(cfg: Config) -> float:
    """How long a training takes against others: its images, times the multiply-adds of student and teacher."""
    size = training_size(cfg) or (64, 64)
    epochs = cfg.train_cfg.get("max_epochs") or cfg.train_cfg.get("max_iters", 1)
    shape = (1, 3, *size)
    work = (1 + BACKWARD) * multiply_adds(build_task_model(cfg).network, shape)
    for teacher in (cfg.model.get("teacher"), *(cfg.model.get("teachers") or {}).values()):
        if teacher is not None:
            bare = {**cfg.model.to_dict(), "teacher": {**teacher.to_dict(), "checkpoint": None}, "teachers": None}
            work += multiply_adds(build_teacher_model(Config({"model": bare})).network, shape)
    return float(epochs * work)


def _record_of(folder: Path) -> dict[str, Any] | None:
    file = folder / RECORD
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return content if isinstance(content, dict) else None


def _teacher_hash(cfg: Config) -> str | None:
    teachers = [cfg.model.get("teacher"), *(cfg.model.get("teachers") or {}).values()]
    files = [Path(teacher["checkpoint"]) for teacher in teachers if teacher and teacher.get("checkpoint")]
    return "+".join(sha256_of(file) for file in files if file.is_file()) or None


def _is_of(artefact: Path, weights: Path) -> bool:
    if not artefact.is_file():
        return False
    try:
        recorded = read_manifest(artefact).about.checkpoint
    except UserError:
        return False
    return recorded is not None and recorded["sha256"] == sha256_of(weights)


# --- Progress --------------------------------------------------------------------------------------------------------


def _go_through(stages: list[Stage], announce: Announce) -> None:
    """Do each stage in turn, announced with its number and the time that the trainings still need."""
    spent, done = 0.0, 0.0
    for number, stage in enumerate(stages, start=1):
        left = sum(later.effort for later in stages[number - 1 :])
        announce(f"[{number}/{len(stages)}] {stage.title}{_time_left(spent, done, left)}")
        begin = time.monotonic()
        if not stage.work():
            announce(f"[{number}/{len(stages)}] was finished before")
        elif stage.effort:
            spent, done = spent + time.monotonic() - begin, done + stage.effort


def _time_left(spent: float, done: float, left: float) -> str:
    if not done or not left:
        return ""
    seconds = spent / done * left
    return (
        f" (about {seconds / 60:.0f} min left for all stages)"
        if seconds >= 90
        else f" (about {seconds:.0f} s left for all stages)"
    )


def _print(message: str) -> None:
    console.print(message, markup=False, highlight=False, style="bold")
