"""The report card: one HTML file that shows what a distillation brought, to someone who has not seen the project.

The file stands alone: styles inline, charts as SVG, pictures as data URIs, no script and nothing from elsewhere.
"""

import html
import platform
import shlex
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kd_tasks import __version__
from kd_tasks.engine.files import write_text
from kd_tasks.evaluation.comparison import (
    ALONE,
    DISTILLED,
    EXPORTED,
    TEACHER,
    Comparison,
    Measured,
    Row,
    bytes_in_words,
    counted,
    milliseconds,
)
from kd_tasks.evaluation.runs import Run, read_scalars
from kd_tasks.report import charts
from kd_tasks.report.pictures import Gallery, gallery_of

PACKAGES = ("torch", "torchvision", "mmengine-lite", "numpy", "onnx", "onnxruntime", "albumentations")
MANY_CLASSES = 60
NOT_A_LOSS = ("loss",)


def write_card(comparison: Comparison, path: str | Path, gallery: Gallery | None = None) -> Path:
    """Write the report card of `comparison`.

    Args:
        comparison: what `kd_tasks.evaluation.compare.compare` found; curves and configs are read from its run folders.
        path: the HTML file.
        gallery: the pictures; predicted by the compared models if not given.

    Returns:
        `path`.
    """
    if gallery is None:
        gallery = gallery_of(comparison)
    return write_text(path, card(comparison, gallery))


def card(comparison: Comparison, gallery: Gallery | None = None) -> str:
    """The report card as HTML; without `gallery` it has no pictures."""
    sections = [
        _headline(comparison),
        _positions(comparison),
        _section("The numbers", _table(comparison) + _glossary(comparison), GAP),
        _pictures(gallery),
        _classes(comparison),
        _curves(comparison),
        _background(comparison),
    ]
    title = f"Report card: {comparison.task} distillation"
    style = resources.files("kd_tasks.report").joinpath("card.css").read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{_text(title)}</title>\n<style>\n{style}</style>\n'
        f"</head>\n<body>\n<main>\n{''.join(filter(None, sections))}</main>\n"
        f"<footer>kd_tasks {__version__}</footer>\n</body>\n</html>\n"
    )


# --- Sections --------------------------------------------------------------------------------------------------------

POSITIONS = (
    "Each dot is one run, the bar is the mean. The further the distilled student is from the student alone, towards "
    "the teacher, the more of the teacher's lead it has taken over."
)
GAP = (
    "The gap is the distance from the student alone to the teacher: closing 0 % of it is no better than alone, "
    "100 % is as good as the teacher."
)
MEANINGS = {
    "agreement": "Agreement is how often student and teacher decide alike, right or wrong;",
    "kl": "KL is how far the student's probabilities are from the teacher's (0: the same);",
    "cka": "CKA is how alike the two networks are inside (1: the same up to rotation and scale).",
    "largest_difference": "The largest difference is that of an exported file's outputs to the checkpoint's.",
    "latency_ms": "Latency is the median time of one image on one CPU thread, p95 the time that 95 % stay below.",
}
SEVERAL = "± is the standard deviation over the seeds."
CURVES = (
    "The terms of the distilled student's objective as they were added up, weights included (faint: logged, strong: "
    "moving average)."
)
VALIDATION = "The metric on the validation data while training went on, one line a run."


def _headline(comparison: Comparison) -> str:
    notes = "".join(f"<li>{_text(note)}</li>" for note in comparison.notes)
    return (
        f'<header>\n<p class="kicker">{_text(comparison.task)} · {_text(comparison.data)}</p>\n'
        f"<h1>{_text(comparison.headline())}</h1>\n{_tiles(comparison)}"
        + (f'<div class="notes"><strong>Before you trust these numbers</strong><ul>{notes}</ul></div>' if notes else "")
        + "</header>\n"
    )


def _tiles(comparison: Comparison) -> str:
    tiles = [_gain_tile(comparison), _gap_tile(comparison), _cost_tile(comparison), _size_tile(comparison)]
    return f'<div class="tiles">{"".join(filter(None, tiles))}</div>\n'


def _positions(comparison: Comparison) -> str:
    if not any(comparison.score(row).finite for row in comparison.rows):
        return ""
    return _section("Where each one stands", charts.positions(comparison), POSITIONS)


def _gain_tile(comparison: Comparison) -> str:
    distilled = comparison.row(DISTILLED)
    if distilled is None or not comparison.gain(distilled).finite:
        return ""
    gain = comparison.gain(distilled)
    return _tile(gain.shown("{:+.2f}".format), f"{comparison.main_metric} against the same student trained alone")


def _gap_tile(comparison: Comparison) -> str:
    distilled = comparison.row(DISTILLED)
    if distilled is None:
        return ""
    gap = comparison.gap(distilled)
    if gap.share is None:
        return _tile("undefined", f"share of the gap closed: {gap.reason}")
    filled = 100 * min(max(gap.share, 0.0), 1.0)
    bar = f'<span class="meter" aria-hidden="true"><span style="width:{filled:.0f}%"></span></span>'
    negative = " (negative: worse than alone)" if gap.share < 0 else ""
    return _tile(gap.shown(), f"of the gap between student alone and teacher is closed{negative}", bar)


def _cost_tile(comparison: Comparison) -> str:
    exported = comparison.row(EXPORTED)
    size, latency = (
        (exported.spread("cost", name) for name in ("file_bytes", "latency_ms")) if exported else (None, None)
    )
    if exported is None or size is None or latency is None or not size.finite:
        return ""
    speed = f"; {milliseconds(latency.mean)} an image" if latency.finite else ""
    return _tile(bytes_in_words(size.mean), f"{exported.variant}, ready to deploy{speed}")


def _size_tile(comparison: Comparison) -> str:
    rows = (comparison.row(TEACHER), comparison.row(DISTILLED))
    teacher, student = (row.spread("cost", "parameters").mean if row else 0.0 for row in rows)
    if not teacher > 0 or not student > 0:
        return ""
    return _tile(
        f"{teacher / student:.1f} times", f"fewer parameters than the teacher: {counted(student)}, {counted(teacher)}"
    )


def _tile(value: str, meaning: str, extra: str = "") -> str:
    return f'<div class="tile"><b>{_text(value)}</b>{extra}<span>{_text(meaning)}</span></div>'


def _table(comparison: Comparison) -> str:
    head = "".join(f'<th scope="col"><i class="dot {row.role}"></i>{_text(row.label)}</th>' for row in comparison.rows)
    bodies = "".join(f"<tbody>{''.join(map(_table_row, lines))}</tbody>" for lines in comparison.sections() if lines)
    caption = f"Teacher, student alone, distilled and exported student on {comparison.data}"
    return (
        f'<div class="scroll"><table><caption>{_text(caption)}</caption>'
        f"<thead><tr><td></td>{head}</tr></thead>{bodies}</table></div>"
    )


def _table_row(line: Sequence[str]) -> str:
    name, *cells = line
    return f'<tr><th scope="row">{_text(name)}</th>{"".join(f"<td>{_text(cell)}</td>" for cell in cells)}</tr>'


def _glossary(comparison: Comparison) -> str:
    known = {name for row in comparison.rows for group in ("fidelity", "cost") for name in row.names(group)}
    several = any(len(row.members) > 1 for row in comparison.rows)
    told = [meaning for name, meaning in MEANINGS.items() if name in known]
    noted = [comparison.metric_note] if comparison.metric_note else []
    return f'<p class="told small">{_text(" ".join([*noted, *told, *([SEVERAL] if several else [])]))}</p>'


def _pictures(gallery: Gallery | None) -> str:
    if gallery is None or not gallery.samples:
        return ""
    samples = "".join(
        f'<section class="sample"><h3>{_text(sample.title)}</h3><div class="strip{" wide" if sample.wide else ""}">'
        + "".join(
            f'<figure><img src="{picture.uri}" alt="{_text(picture.description)}" loading="lazy">'
            f"<figcaption>{_text(picture.title)}</figcaption></figure>"
            for picture in sample.pictures
        )
        + "</div></section>"
        for sample in gallery.samples
    )
    return _section("What they see", _legend(gallery.legend) + samples, gallery.explanation)


def _legend(legend: Sequence[tuple[str, tuple[int, int, int]]]) -> str:
    entries = "".join(
        f'<li><i style="background:rgb({r},{g},{b})"></i>{_text(name)}</li>' for name, (r, g, b) in legend
    )
    return f'<ul class="legend" aria-label="Legend of the colours">{entries}</ul>' if entries else ""


def _classes(comparison: Comparison) -> str:
    rows = [row for row in comparison.rows if row.role != EXPORTED and any(m.per_class for m in row.members)]
    metrics = dict.fromkeys(k for row in rows for m in row.members for numbers in m.per_class.values() for k in numbers)
    if not rows or not metrics:
        return ""
    metric = next(iter(metrics))
    classes = {name for row in rows for name in row.per_class(metric)}
    if len(classes) > MANY_CLASSES:
        shown = f"There are {len(classes)} classes, too many for a chart; metrics.json of each run has them all."
        return _section("Class by class", "", shown)
    explanation = " ".join(filter(None, (f"{metric} of each class on the test data.", comparison.metric_note)))
    return _section("Class by class", charts.class_bars(rows, metric), explanation)


def _curves(comparison: Comparison) -> str:
    logged = {member.path: read_scalars(curves) for member, curves in _runs_with_curves(comparison)}
    parts = [_validation(comparison, logged), _terms(comparison, logged)]
    return _section("How the training went", "".join(parts), "") if any(parts) else ""


def _validation(comparison: Comparison, logged: Mapping[Path, Sequence[Mapping[str, Any]]]) -> str:
    lines = [
        (row.label, row.role, points)
        for row in comparison.rows
        for member in row.members
        if (points := _validation_points(logged.get(member.path, ()), comparison.main_metric))
    ]
    if not lines:
        return ""
    return f"<p>{_text(VALIDATION)}</p>{charts.validation(lines, comparison.main_metric)}"


def _terms(comparison: Comparison, logged: Mapping[Path, Sequence[Mapping[str, Any]]]) -> str:
    distilled = comparison.row(DISTILLED)
    terms = loss_terms(logged.get(distilled.members[0].path, ())) if distilled else {}
    return f"<p>{_text(CURVES)}</p>{charts.losses_by_term(terms)}" if terms else ""


def loss_terms(entries: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """`(iteration, value)` of each term `task.NAME`, `kd.NAME`, `critic.NAME` in logged training lines."""
    terms: dict[str, list[tuple[float, float]]] = {}
    for entry in entries:
        for name, value in entry.items():
            if name.startswith(("task.", "kd.", "critic.")) and isinstance(value, int | float):
                terms.setdefault(name, []).append((float(entry.get("iter", 0)), float(value)))
    return terms


def _validation_points(entries: Iterable[Mapping[str, Any]], metric: str) -> list[tuple[float, float]]:
    """`(iteration, value)` of the metric in logged validation lines."""
    values = [(float(entry.get("iter", 0)), entry.get(f"val/{metric}")) for entry in entries]
    return [(iteration, float(value)) for iteration, value in values if isinstance(value, int | float)]


def _runs_with_curves(comparison: Comparison) -> list[tuple[Measured, Path]]:
    members = [m for row in comparison.rows for m in row.members if row.role != EXPORTED]
    found = [(member, Run(member.path).curves) for member in members if member.path.is_dir()]
    return [(member, curves) for member, curves in found if curves is not None]


def _background(comparison: Comparison) -> str:
    rows = [row for row in comparison.rows if row.role != EXPORTED]
    configs = "".join(_config(row) for row in rows)
    environment = "".join(f"<tr><th scope='row'>{_text(k)}</th><td>{_text(v)}</td></tr>" for k, v in environment_of())
    commands = "\n".join(_commands(comparison))
    return _section(
        "Do it again",
        f"<pre><code>{_text(commands)}</code></pre>{configs}"
        f"<details><summary>Environment</summary><table>{environment}</table></details>",
        "The commands that make these runs from their configs, the configs as they were run, and what they ran on.",
    )


def _config(row: Row) -> str:
    file = row.members[0].path / "config.py"
    if not file.is_file():
        return ""
    text = file.read_text(encoding="utf-8")
    return f"<details><summary>Config: {_text(row.label)}</summary><pre><code>{_text(text)}</code></pre></details>"


def _commands(comparison: Comparison) -> list[str]:
    members = {role: [m for row in comparison.rows if row.role == role for m in row.members] for role in charts.COLOURS}
    trained = [m for role in (TEACHER, ALONE, DISTILLED) for m in members[role]]
    commands = [["train", member.path / "config.py", "--work-dir", member.path] for member in trained]
    commands += [["evaluate", member.path] for member in members[EXPORTED]]
    everything = [member.path for member in [*trained, *members[EXPORTED]]]
    commands.append(["compare", *everything, "--out", "report"])
    return [shlex.join(["kd-tasks", *map(str, command)]) for command in commands]


def environment_of() -> list[tuple[str, str]]:
    """What the numbers depend on, as `(name, value)`: versions, operating system, processor, accelerator."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    found = [("kd_tasks", __version__), ("Python", platform.python_version())]
    found += [(name, _version(name)) for name in PACKAGES]
    system = f"{platform.system()} {platform.machine()}"
    return [*found, ("system", system), ("accelerator", device), ("CPU threads", str(torch.get_num_threads()))]


# --- Parts -----------------------------------------------------------------------------------------------------------


def _section(title: str, body: str, explanation: str) -> str:
    told = f'<p class="told">{_text(explanation)}</p>' if explanation else ""
    return f"<section>\n<h2>{_text(title)}</h2>\n{told}\n{body}\n</section>\n"


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
