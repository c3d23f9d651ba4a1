"""What a comparison of runs holds, its arithmetic, and how it reads: as a table, as a sentence, as JSON."""

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from kd_tasks.engine.files import write_json

TEACHER, ALONE, DISTILLED, EXPORTED = ROLES = ("teacher", "alone", "distilled", "exported")
Numbers = Mapping[str, float]
Form = Callable[[float], str]


# --- In words ---------------------------------------------------------------------------------------------------------


def counted(value: float) -> str:
    """A count with the unit that keeps it short: `11.2 M`."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.2f}{unit}"
    return f"{value:.0f}"


def bytes_in_words(value: float) -> str:
    """A file size: `4.7 MiB`."""
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} B"


def milliseconds(value: float) -> str:
    """A short time: `12.3 ms`, `0.04 ms`."""
    return f"{value:.1f} ms" if value >= 1 else f"{value:.2f} ms"


two_places: Form = "{:.2f}".format
FIDELITY: dict[str, tuple[str, Form]] = {
    "agreement": ("agreement, %", two_places),
    "kl": ("KL, nats", "{:.4f}".format),
    "cka": ("CKA", "{:.3f}".format),
}
COST: dict[str, tuple[str, Form]] = {
    "parameters": ("parameters", counted),
    "multiply_adds": ("multiply-adds", counted),
    "file_bytes": ("file", bytes_in_words),
    "latency_ms": ("latency, ms", two_places),
    "latency_p95_ms": ("latency p95, ms", two_places),
    "images_per_second": ("images a second", "{:.1f}".format),
    "largest_difference": ("largest difference", "{:.1e}".format),
}


# --- Arithmetic ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """One number over several seeds; values that are not finite are left out of mean and deviation."""

    values: tuple[float, ...]

    @property
    def finite(self) -> tuple[float, ...]:
        """The values that are numbers."""
        return tuple(value for value in self.values if math.isfinite(value))

    @property
    def mean(self) -> float:
        """The mean; not-a-number without a finite value."""
        return statistics.fmean(self.finite) if self.finite else math.nan

    @property
    def std(self) -> float | None:
        """The sample standard deviation (divisor n - 1); None with fewer than two values."""
        return statistics.stdev(self.finite) if len(self.finite) > 1 else None

    def shown(self, form: Form = two_places) -> str:
        """`mean ± deviation`, the mean alone with one value, a dash if none is a number."""
        if not self.values:
            return ""
        if not self.finite:
            return "-"
        return form(self.mean) if self.std is None else f"{form(self.mean)} ± {form(self.std).lstrip('+')}"

    def to_dict(self) -> dict[str, Any]:
        """Mean, deviation and values as JSON takes them."""
        return {"mean": _finite(self.mean), "std": self.std, "values": [_finite(value) for value in self.values]}


@dataclass(frozen=True)
class Gap:
    """The share of the way from the student alone to the teacher: 0 as good as alone, 1 as good as the teacher.

    Where it is undefined `share` is None and `reason` says why.
    """

    share: float | None
    reason: str = ""

    def shown(self) -> str:
        """`45 %`, or `undefined`."""
        return "undefined" if self.share is None else f"{100 * self.share:.0f} %"


def gap_closed(teacher: float, alone: float, distilled: float, lower_is_better: bool = False) -> Gap:
    """`(distilled - alone) / (teacher - alone)`; undefined unless the teacher is better than the student alone.

    It can be negative (worse than alone) and above 1 (better than the teacher).
    """
    named = {"teacher": teacher, "student alone": alone, "distilled student": distilled}
    missing = [name for name, value in named.items() if not math.isfinite(value)]
    if missing:
        return Gap(None, f"there is no number for the {' and the '.join(missing)}")
    lead = alone - teacher if lower_is_better else teacher - alone
    if lead <= 0:
        return Gap(None, f"the teacher ({teacher:.2f}) is not better than the student alone ({alone:.2f})")
    return Gap((distilled - alone) / (teacher - alone))


# --- What was measured -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One run folder or artefact with its numbers.

    Attributes:
        path: the folder or file.
        role: one of `ROLES`.
        network: the network in words, such as `PSPNet resnet18`.
        variant: what tells it from others of its role: the transfers, the file format; may be empty.
        seed: of the run; None where unknown.
        metrics: the task's metrics on the test data; the first one is the main metric.
        per_class: metrics of each class or category, by its name.
        cost: `parameters`, `multiply_adds`, `file_bytes`, `latency_ms` (median), `latency_p95_ms`, `images_per_second`,
            and an artefact's `largest_difference` from its checkpoint's outputs.
        fidelity: how near it is to the teacher: `agreement` (percent), `kl` (nats), `cka`.
        note: how the metrics are to be read, in words; may be empty.
    """

    path: Path
    role: str
    network: str
    variant: str = ""
    seed: int | None = None
    metrics: Numbers = field(default_factory=dict)
    per_class: Mapping[str, Numbers] = field(default_factory=dict)
    cost: Numbers = field(default_factory=dict)
    fidelity: Numbers = field(default_factory=dict)
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON takes it."""
        return {
            "path": str(self.path),
            "role": self.role,
            "network": self.network,
            "variant": self.variant,
            "seed": self.seed,
            "metrics": _finite_all(self.metrics),
            "per_class": {name: _finite_all(numbers) for name, numbers in self.per_class.items()},
            "cost": _finite_all(self.cost),
            "fidelity": _finite_all(self.fidelity),
        }


@dataclass(frozen=True)
class Row:
    """The runs that play one part, one a seed."""

    role: str
    variant: str
    members: tuple[Measured, ...]

    @property
    def label(self) -> str:
        """`teacher`, `alone`, `distilled (pixel + pair)`, `student.onnx`."""
        if self.role == EXPORTED:
            return self.variant
        return f"{self.role} ({self.variant})" if self.variant else self.role

    @property
    def network(self) -> str:
        """The network in words."""
        return self.members[0].network

    def spread(self, group: str, name: str) -> Spread:
        """Number `name` of `group` (`metrics`, `cost`, `fidelity`) over the seeds."""
        groups = (getattr(member, group) for member in self.members)
        return Spread(tuple(numbers[name] for numbers in groups if name in numbers))

    def names(self, group: str) -> list[str]:
        """The names of the numbers of `group` that any member has, in their order."""
        return list(dict.fromkeys(name for member in self.members for name in getattr(member, group)))

    def per_class(self, metric: str) -> dict[str, Spread]:
        """`metric` of each class over the seeds."""
        classes = dict.fromkeys(name for member in self.members for name in member.per_class)
        return {
            name: Spread(tuple(m.per_class[name][metric] for m in self.members if metric in m.per_class.get(name, {})))
            for name in classes
        }


@dataclass(frozen=True)
class Comparison:
    """The parts side by side.

    Attributes:
        task: name of the plugin.
        data: the test data in words.
        rows: teacher, alone, distilled, exported, in this order, as far as there are any.
        lower_is_better: whether a smaller main metric is better.
        notes: what one should know before one trusts the numbers.
    """

    task: str
    data: str
    rows: tuple[Row, ...]
    lower_is_better: bool = False
    notes: tuple[str, ...] = ()

    @property
    def main_metric(self) -> str:
        """The first metric of the task."""
        return next((name for row in self.rows for name in row.names("metrics")), "")

    @property
    def metric_note(self) -> str:
        """How the metrics are to be read, such as what an error is divided by; empty where they need no words."""
        notes = dict.fromkeys(member.note for row in self.rows for member in row.members)
        return " ".join(filter(None, notes))

    def row(self, role: str) -> Row | None:
        """The first row of `role`."""
        return next((row for row in self.rows if row.role == role), None)

    @property
    def best_teacher(self) -> Row | None:
        """The teacher with the best main metric, if there is any."""
        teachers = [row for row in self.rows if row.role == TEACHER]
        best = min if self.lower_is_better else max
        return best(teachers, key=lambda row: self.score(row).mean, default=None)

    def score(self, row: Row | None) -> Spread:
        """The main metric of `row`."""
        return Spread(()) if row is None else row.spread("metrics", self.main_metric)

    def gap(self, row: Row) -> Gap:
        """The share of the gap between student alone and best teacher that `row` closes, of means over the seeds."""
        teacher, alone = self.best_teacher, self.row(ALONE)
        for needed, name in ((teacher, "teacher"), (alone, "student alone")):
            if needed is None:
                return Gap(None, f"there is no run of the {name}")
        best, worst, reached = (self.score(part).mean for part in (teacher, alone, row))
        return gap_closed(best, worst, reached, self.lower_is_better)

    def gain(self, row: Row) -> Spread:
        """How much better than the student alone `row` is, seed by seed where both have the same seeds.

        Positive is better, for metrics of either direction.
        """
        alone = self.row(ALONE)
        if alone is None:
            return Spread(())
        sign = -1.0 if self.lower_is_better else 1.0
        pairs = _paired(alone, row, self.main_metric)
        if pairs is None:
            return Spread((sign * (self.score(row).mean - self.score(alone).mean),))
        return Spread(tuple(sign * (ours - theirs) for theirs, ours in pairs))

    def headline(self) -> str:
        """One or two sentences that say what came out."""
        distilled = self.row(DISTILLED)
        if distilled is None:
            best = [f"{row.label} {self.score(row).shown()}" for row in self.rows]
            return f"{self.main_metric} on {self.data}: {', '.join(best)}."
        return " ".join(filter(None, (self._outcome(distilled), self._gap_in_words(distilled), self._file_in_words())))

    def _outcome(self, distilled: Row) -> str:
        teachers = [row for row in self.rows if row.role == TEACHER]
        taught = {0: "", 1: f" from {teachers[0].network}" if teachers else ""}
        source = f"{distilled.network} distilled{taught.get(len(teachers), f' from {len(teachers)} teachers')}"
        reached = f"{source} reaches {self.score(distilled).shown()} {self.main_metric} on {self.data}"
        gain = self.gain(distilled)
        if not gain.finite:
            return f"{reached}."
        alone = self.score(self.row(ALONE)).shown()
        if two_places(abs(gain.mean)) == two_places(0.0):
            return f"{reached}, no better than trained alone ({alone})."
        sign, better = (1, "better") if gain.mean > 0 else (-1, "worse")
        amount = Spread(tuple(sign * value for value in gain.values)).shown()
        return f"{reached}, {amount} {better} than trained alone ({alone})."

    def _gap_in_words(self, distilled: Row) -> str:
        gap = self.gap(distilled)
        if gap.share is None:
            return f"The share of the gap closed is undefined: {gap.reason}."
        teacher = self.score(self.best_teacher).shown()
        if gap.shown() in ("0 %", "-0 %") or gap.share < 0:
            return f"It closes nothing of the gap to the teacher ({teacher})."
        return f"It closes {gap.shown()} of the gap to the teacher ({teacher})."

    def _file_in_words(self) -> str:
        exported = self.row(EXPORTED)
        if exported is None:
            return ""
        size, latency = exported.spread("cost", "file_bytes"), exported.spread("cost", "latency_ms")
        facts = [f"{self.score(exported).shown()} {self.main_metric}"]
        facts += [bytes_in_words(size.mean)] if size.finite else []
        facts += [f"{milliseconds(latency.mean)} an image"] if latency.finite else []
        return f"The exported {exported.variant} has {', '.join(facts)}."

    def table(self) -> Table:
        """Numbers down, parts across."""
        table = Table(title=f"{self.task}: {self.data}", title_justify="left", caption_justify="left")
        table.caption = self.metric_note or None
        table.add_column("", no_wrap=True)
        for row in self.rows:
            table.add_column(row.label, justify="right", overflow="fold")
        for section in self.sections():
            for line in section:
                table.add_row(*line)
            table.add_section()
        return table

    def sections(self) -> list[list[list[str]]]:
        """The table's lines of text, `[name, one cell a row…]`, in sections: metrics, gap, fidelity, cost."""
        metrics = [self._line("metrics", name, name, two_places) for name in self._names("metrics")]
        outcome = [
            ["gain over alone", *(self._gain_cell(row) for row in self.rows)],
            ["gap closed", *(self._gap_cell(row) for row in self.rows)],
        ]
        fidelity = [self._line("fidelity", name, *FIDELITY[name]) for name in self._names("fidelity")]
        cost = [self._means(name, *COST[name]) for name in COST if name in self._names("cost")]
        networks = [
            ["network", *("" if row.role == EXPORTED else row.network for row in self.rows)],
            ["runs", *(str(len(row.members)) for row in self.rows)],
        ]
        return [networks, metrics, outcome, fidelity, cost]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON takes it; numbers that are not finite are null."""
        return {
            "task": self.task,
            "data": self.data,
            "main_metric": self.main_metric,
            "lower_is_better": self.lower_is_better,
            "headline": self.headline(),
            "notes": list(self.notes),
            "metric_note": self.metric_note,
            "rows": [self._row_dict(row) for row in self.rows],
        }

    def save(self, path: Path) -> Path:
        """Write `to_dict()` as JSON."""
        return write_json(path, self.to_dict())

    def _row_dict(self, row: Row) -> dict[str, Any]:
        groups = {
            group: {name: row.spread(group, name).to_dict() for name in row.names(group)}
            for group in ("metrics", "cost", "fidelity")
        }
        gap = self.gap(row) if row.role in (DISTILLED, EXPORTED) else None
        return {
            "role": row.role,
            "label": row.label,
            "network": row.network,
            **groups,
            "gain": self.gain(row).to_dict() if gap else None,
            "gap_closed": gap and {"share": gap.share, "reason": gap.reason},
            "members": [member.to_dict() for member in row.members],
        }

    def _names(self, group: str) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name in row.names(group)))

    def _line(self, group: str, name: str, label: str, form: Form) -> list[str]:
        return [label, *(row.spread(group, name).shown(form) for row in self.rows)]

    def _means(self, name: str, label: str, form: Form) -> list[str]:
        spreads = (row.spread("cost", name) for row in self.rows)
        return [label, *(form(spread.mean) if spread.finite else "" for spread in spreads)]

    def _gain_cell(self, row: Row) -> str:
        return self.gain(row).shown("{:+.2f}".format) if row.role in (DISTILLED, EXPORTED) else ""

    def _gap_cell(self, row: Row) -> str:
        return self.gap(row).shown() if row.role in (DISTILLED, EXPORTED) else ""


def _paired(alone: Row, row: Row, metric: str) -> list[tuple[float, float]] | None:
    """`(alone, row)` of each seed, if both have the same seeds and none twice."""
    ours, theirs = (
        {member.seed: member.metrics[metric] for member in part.members if metric in member.metrics}
        for part in (row, alone)
    )
    complete = len(ours) == len(row.members) and len(theirs) == len(alone.members)
    if not complete or ours.keys() != theirs.keys() or (None in ours and len(ours) > 1):
        return None
    return [(theirs[seed], ours[seed]) for seed in sorted(ours, key=str)]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _finite_all(numbers: Numbers) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in numbers.items()}
