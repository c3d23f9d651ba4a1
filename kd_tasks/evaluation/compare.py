"""Teacher, student alone, distilled student and exported files, measured on the same data and set side by side.

Which run plays which part is read from the configs: a run whose model is a `Distiller` is the distilled student; the
run that its teacher was loaded from is the teacher; a run that trained the same student network without a teacher is
the student alone; an artefact is an exported student. Several seeds of one part become a mean and a deviation.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.registry import METRICS

from kd_tasks import plugins
from kd_tasks.deploy.artefact import About, read_manifest
from kd_tasks.errors import UserError
from kd_tasks.evaluation.comparison import ALONE, DISTILLED, EXPORTED, ROLES, TEACHER, Comparison, Measured, Row
from kd_tasks.evaluation.measure import (
    measure_artefact,
    measure_cost,
    measure_likeness,
    measure_metrics,
    tested_alike,
)
from kd_tasks.evaluation.runs import (
    STUDENT,
    Run,
    assign_roles,
    is_artefact,
    network_name,
    numbers,
    read_run,
    recipe_name,
    teacher_name,
    trained_unlike,
)
from kd_tasks.paths import data_root
from kd_tasks.vision.cards import TWIN_FILE

__all__ = ["Comparison", "compare", "rows_of"]

SHOWN_DIFFERENCES = 4


def compare(runs: Sequence[str | Path], cost: bool = True, likeness: bool = True) -> Comparison:
    """Set runs and artefacts side by side.

    Args:
        runs: run folders and exported files, in any order.
        cost: measure parameters, multiply-adds and latency.
        likeness: measure how near the students are to the teacher.

    Raises:
        UserError: if a path is neither, a run's part cannot be told, or runs of different tasks are mixed.
    """
    plugins.load_all()
    paths = [Path(path) for path in runs]
    if not paths:
        raise UserError("compare needs at least one run folder or exported file.")
    group = _Group([read_run(path) for path in paths if not is_artefact(path)], [p for p in paths if is_artefact(p)])
    measured = [group.measured(run, cost, likeness) for run in group.runs]
    measured += [group.exported(path, cost) for path in group.artefacts]
    return Comparison(
        task=group.task,
        data=group.data,
        rows=rows_of(measured),
        lower_is_better=group.lower_is_better(measured),
        notes=tuple(group.notes()),
    )


def rows_of(measured: Sequence[Measured]) -> tuple[Row, ...]:
    """One row for each part and variant, in the order of the parts.

    What tells the rows of one part apart is named: the network where they differ in it, else the variant.
    """
    rows = []
    for role in ROLES:
        members = [m for m in measured if m.role == role]
        kinds = list(dict.fromkeys((m.network, m.variant) for m in members))
        networks = {network for network, _ in kinds}
        for network, variant in kinds:
            chosen = tuple(m for m in members if (m.network, m.variant) == (network, variant))
            differs = ", ".join(filter(None, (network * (len(networks) > 1), variant)))
            rows.append(Row(role, differs if len(kinds) > 1 or role == EXPORTED else "", chosen))
    return tuple(rows)


class _Group:
    """The runs and artefacts of one comparison.

    Args:
        runs: run folders.
        artefacts: exported files.

    Raises:
        UserError: if they belong to different tasks, or the part of a run cannot be told.
    """

    def __init__(self, runs: Sequence[Run], artefacts: Sequence[Path]) -> None:
        self.runs = runs
        self.artefacts = artefacts
        self.abouts: dict[Path, About] = {path: read_manifest(path).about for path in artefacts}
        self._refuse_mixed_tasks()
        self.roles = assign_roles(runs)
        self.reference = next((run for run in runs if run.distilled), next(iter(runs), None))

    @property
    def task(self) -> str:
        """Name of the plugin."""
        return self._of_reference("task") or next((about.task for about in self.abouts.values()), "")

    @property
    def data(self) -> str:
        """The test data in words."""
        loader = self._of_reference("test_dataloader")
        loader = loader or next((about.test_dataloader for about in self.abouts.values()), None)
        dataset = (loader or {}).get("dataset", {})
        root = dataset.get("data_root")
        twin = "(synthetic twin)" if root and (data_root(root) / TWIN_FILE).is_file() else ""
        return " ".join(filter(None, (dataset.get("type"), dataset.get("split"), twin)))

    def of_role(self, role: str) -> list[Run]:
        """The runs that play a part."""
        return [run for run in self.runs if self.roles[run.folder] == role]

    def measured(self, run: Run, cost: bool, likeness: bool) -> Measured:
        """One run with its numbers."""
        assert self.reference is not None
        role = self.roles[run.folder]
        result = measure_metrics(run, self.reference)
        return Measured(
            path=run.folder,
            role=role,
            network=network_name(run.network),
            variant=teacher_name(run, self.runs) if role == TEACHER else recipe_name(run, self.runs),
            seed=run.seed,
            metrics=result.metrics,
            per_class=result.per_class,
            note=result.note,
            cost=measure_cost(run) if cost else {},
            fidelity=self._likeness(run) if likeness and role != TEACHER else {},
        )

    def exported(self, path: Path, cost: bool) -> Measured:
        """One artefact with its numbers."""
        known, _ = measure_artefact(path)
        source = next((run for run in self.runs if _made_from(path, self.abouts[path], run)), None)
        differences = numbers(known["differences"]).values()
        largest = {"largest_difference": max(differences)} if differences else {}
        return Measured(
            path=path,
            role=EXPORTED,
            network=network_name(source.network) if source else "",
            variant=path.name,
            seed=source.seed if source else None,
            metrics=numbers(known["metrics"]),
            per_class={name: numbers(row) for name, row in known["per_class"].items()},
            note=str(known.get("note", "")),
            cost={**numbers(known["cost"]), **largest} if cost else {},
        )

    def lower_is_better(self, measured: Sequence[Measured]) -> bool:
        """Whether a metric's class lists the main metric in its `lower_is_better`."""
        main = next((name for m in measured for name in m.metrics), "")
        evaluator = self._of_reference("test_evaluator")
        evaluator = evaluator or next((about.evaluator for about in self.abouts.values()), None)
        configs = evaluator if isinstance(evaluator, list | tuple) else [evaluator]
        classes = [METRICS.get(cfg["type"]) for cfg in configs if cfg]
        return any(main in getattr(cls, "lower_is_better", ()) for cls in classes)

    def notes(self) -> list[str]:
        """What one should know before one trusts the numbers."""
        alone, distilled = self.of_role(ALONE), self.of_role(DISTILLED)
        found = _unlike(alone[0], distilled[0]) if alone and distilled else []
        if alone and distilled and {r.seed for r in alone} != {r.seed for r in distilled}:
            found.append("The student alone and the distilled one were not run with the same seeds.")
        if alone and distilled and min(len(alone), len(distilled)) == 1:
            found.append(
                "There is only one seed, and runs that differ in nothing but the seed differ too: a small difference "
                "between two parts can be chance. Compare several seeds."
            )
        if any(run.teachers for run in distilled) and not self.of_role(TEACHER):
            found.append("The teacher's run is not among the runs, so the share of the gap is unknown.")
        moved = [run.folder.name for run in self.runs if self.reference and not tested_alike(run, self.reference)]
        if moved:
            found.append(f"Measured on the test data of the others, not on their own: {', '.join(moved)}.")
        return found

    def _likeness(self, run: Run) -> dict[str, float]:
        pupils = [run] if run.distilled else [r for r in self.of_role(DISTILLED) if r.network == run.network]
        pupil = next((r for r in pupils if len(r.teachers) == 1), None)
        if pupil is None or run.cfg.get("test_dataloader") is None:
            return {}
        weights = self._teacher_weights(pupil)
        return measure_likeness(run, pupil, weights) if weights is not None else {}

    def _teacher_weights(self, pupil: Run) -> Path | None:
        recorded = pupil.teachers[0].get("checkpoint")
        candidates = [Path(recorded)] if recorded else []
        candidates += [run.checkpoint for run in self.of_role(TEACHER)]
        files = (path / STUDENT if path.is_dir() else path for path in candidates)
        return next((file for file in files if file.is_file()), None)

    def _of_reference(self, key: str) -> Any:
        return self.reference.cfg.get(key) if self.reference is not None else None

    def _refuse_mixed_tasks(self) -> None:
        tasks = {run.folder: run.cfg.get("task", "") for run in self.runs}
        tasks |= {path: about.task for path, about in self.abouts.items()}
        if len(set(tasks.values())) > 1:
            told = ", ".join(f"{path} ({task})" for path, task in tasks.items())
            raise UserError(f"runs of different tasks cannot be compared: {told}. Compare them apart.")


def _made_from(path: Path, about: About, run: Run) -> bool:
    recorded: Mapping[str, str] = about.checkpoint or {}
    return "path" in recorded and (path.parent / recorded["path"]).resolve().parent == run.folder.resolve()


def _unlike(alone: Run, distilled: Run) -> list[str]:
    differences = trained_unlike(alone, distilled)
    if not differences:
        return []
    more = f" and {len(differences) - SHOWN_DIFFERENCES} more" if len(differences) > SHOWN_DIFFERENCES else ""
    shown = "; ".join(differences[:SHOWN_DIFFERENCES])
    return [f"The student alone and the distilled one were not trained alike (alone and distilled): {shown}{more}."]
