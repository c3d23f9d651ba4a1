"""Data-set cards: what a benchmark consists of, for people and for checks.

A card is `datasets/<name>.md`: YAML between two lines of `---`, then prose.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import yaml

from kd_tasks.errors import UserError, nearest
from kd_tasks.paths import data_root, shipped
from kd_tasks.plugins import resolve

Size = tuple[int, int]

TWIN_FILE = "synthetic.yaml"  # in the folder of a synthetic twin: its name, seed and counts

_SHOWN = 5
_VALUES_SHOWN = 40


@dataclass(frozen=True)
class Card:
    """One benchmark.

    Attributes:
        name: of the file, as in `kd-tasks data check NAME`.
        title: what people call it.
        plugin: the task that it belongs to.
        dataset: `module:class` of its loader.
        source: where to get it.
        licence: the terms in short.
        layout: the tree of its folder.
        splits: the official number of samples by split; None where it is not fixed.
        classes: how many; None where it is not fixed.
        twin: the name of its synthetic twin, if it has one.
        optional: splits that need not be there.
        options: further arguments of the loader, for the check.
        prose: the text after the machine-readable part.
    """

    name: str
    title: str
    plugin: str
    dataset: str
    layout: str
    splits: Mapping[str, int | None]
    source: str = ""
    licence: str = ""
    classes: int | None = None
    twin: str | None = None
    optional: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    prose: str = ""


@dataclass
class SplitReport:
    """What a check found in one split.

    Attributes:
        found: samples.
        expected: how many there should be; None if any number is right.
        missing: files that should be there, relative to the root.
        faults: one message a faulty file.
        sizes: pictures by (height, width).
        values: pixels by label value, as stored in the files.
        out_of_range: files by label value that no class has.
        unpaired: labels without an image.
        images: the image files.
    """

    found: int = 0
    expected: int | None = None
    missing: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    sizes: Counter[Size] = field(default_factory=Counter)
    values: Counter[int] = field(default_factory=Counter)
    out_of_range: dict[int, list[str]] = field(default_factory=dict)
    unpaired: list[str] = field(default_factory=list)
    images: list[Path] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        complete = self.expected is None or self.found == self.expected
        return complete and not (self.missing or self.faults or self.out_of_range or self.unpaired)

    def lines(self) -> list[str]:
        """The findings for a person: counts first, then what is wrong."""
        lines = [self._count()]
        if self.sizes:
            shown = ", ".join(f"{h}x{w} ({n})" for (h, w), n in self.sizes.most_common(_SHOWN))
            lines.append(f"sizes (height x width): {shown}" + (", …" if len(self.sizes) > _SHOWN else ""))
        if self.values:
            lines.append(f"label values: {_shares(self.values)}")
        for value, files in sorted(self.out_of_range.items()):
            lines.append(f"WRONG label value {value} in {_some(files)}")
        lines += [f"WRONG {what}: {_some(files)}" for what, files in self._wrong_files() if files]
        lines += [f"WRONG {fault}" for fault in self.faults[:_SHOWN]]
        if len(self.faults) > _SHOWN:
            lines.append(f"… and {len(self.faults) - _SHOWN} more faults")
        return lines

    def _count(self) -> str:
        if self.expected in (None, self.found):
            return f"{self.found} samples"
        return f"WRONG number: {self.found} samples of {self.expected}"

    def _wrong_files(self) -> list[tuple[str, list[str]]]:
        return [("missing", self.missing), ("label without an image", self.unpaired)]


@dataclass
class Report:
    """What a check found in a data set.

    Attributes:
        card: the card that it was held against.
        root: the folder.
        splits: by name; an optional split that is not there is left out.
        synthetic: the description of a synthetic twin, whose counts take the place of the card's; None for real data.
        duplicates: groups of image files with equal bytes, relative to the root.
    """

    card: Card
    root: Path
    splits: dict[str, SplitReport] = field(default_factory=dict)
    synthetic: dict[str, Any] | None = None
    duplicates: list[list[str]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong. Equal images are reported, but are no fault: some benchmarks have them."""
        return all(split.ok for split in self.splits.values())

    def lines(self) -> list[str]:
        """The findings for a person."""
        kind = "a synthetic twin of " if self.synthetic is not None else ""
        lines = [f"{self.root}: {kind}{self.card.title}"]
        for name, split in self.splits.items():
            lines += [f"{name}: {line}" for line in split.lines()]
        lines += [f"equal images: {_some(group)}" for group in self.duplicates[:_SHOWN]]
        return [*lines, "everything is as the card says" if self.ok else "the data set is NOT as its card says"]


def card_names() -> list[str]:
    """Names of all cards."""
    return sorted(path.stem for path in shipped("datasets").glob("*.md"))


@cache
def read_card(name: str) -> Card:
    """The card called `name`.

    Raises:
        UserError: if there is none, or it is not written as a card must be.
    """
    path = shipped("datasets") / f"{name}.md"
    if not path.is_file():
        names = card_names()
        raise UserError(f"there is no data-set card {name!r}.{nearest(name, names)} There are: {', '.join(names)}.")
    return parse_card(name, path.read_text(encoding="utf-8"), str(path))


def parse_card(name: str, text: str, where: str = "card") -> Card:
    """A card from its text.

    Raises:
        UserError: if the machine-readable part is missing, is no YAML, or has unknown or lacks needed keys.
    """
    start, _, rest = text.partition("---\n")
    front, end, prose = rest.partition("\n---\n")
    if start.strip() or not end:
        raise UserError(f"{where}: a card begins with YAML between two lines of '---'.")
    try:
        values = yaml.safe_load(front)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: the machine-readable part is no YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{where}: the machine-readable part must consist of keys with values.")
    optional = {f.name: f.default is not MISSING or f.default_factory is not MISSING for f in fields(Card)}
    known = [key for key in optional if key not in ("name", "prose")]
    for key in values:
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}.{nearest(key, known)} Known: {', '.join(known)}.")
    lacking = [key for key in known if not optional[key] and key not in values]
    if lacking:
        raise UserError(f"{where}: lacks {', '.join(lacking)}.")
    values["optional"] = tuple(values.get("optional", ()))
    return Card(name=name, prose=prose.strip(), **values)


def check_dataset(
    name: str,
    root: str | Path,
    progress: Callable[[str, int, int], None] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Report:
    """Hold a folder against the card `name`: counts, pairs, label values, sizes, equal images.

    Args:
        name: of the card.
        root: the data set's folder.
        progress: is called with the split, the samples read and their number.
        options: further arguments of the loader, such as `classes` of one's own data.

    Raises:
        UserError: if there is no such card or folder.
    """
    card = read_card(name)
    report = Report(card, data_root(root))
    if not report.root.is_dir():
        raise UserError(f"{report.root}: no such folder. Expected there:\n{card.layout}")
    report.synthetic = _twin_description(report.root)
    counts = report.synthetic["splits"] if report.synthetic is not None else card.splits
    cls = resolve(card.dataset)
    for split, expected in counts.items():
        following = None if progress is None else _Following(progress, split)
        found = cls.survey(report.root, split, following, **{**card.options, **(options or {})})
        if found.found == 0 and split in card.optional:
            continue
        found.expected = expected
        report.splits[split] = found
    report.duplicates = _duplicates(report)
    return report


class _Following:
    """A progress callback that also says the split."""

    def __init__(self, callback: Callable[[str, int, int], None], split: str) -> None:
        self.callback = callback
        self.split = split

    def __call__(self, done: int, total: int) -> None:
        self.callback(self.split, done, total)


def _twin_description(root: Path) -> dict[str, Any] | None:
    path = root / TWIN_FILE
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None


def _duplicates(report: Report) -> list[list[str]]:
    """Groups of equal files; only those of equal length are read."""
    by_length: dict[int, set[Path]] = defaultdict(set)
    for split in report.splits.values():
        for path in split.images:
            by_length[path.stat().st_size].add(path)
    by_content: dict[bytes, list[str]] = defaultdict(list)
    for paths in by_length.values():
        for path in sorted(paths) if len(paths) > 1 else ():
            digest = blake2b(path.read_bytes(), digest_size=16).digest()
            by_content[digest].append(path.relative_to(report.root).as_posix())
    return sorted(group for group in by_content.values() if len(group) > 1)


def _shares(values: Counter[int]) -> str:
    """Percent by value; of many values, the most frequent ones."""
    total = sum(values.values())
    shown = sorted(values.most_common(_VALUES_SHOWN))
    shares = ", ".join(f"{value}: {100 * count / total:.2g} %" for value, count in shown)
    return shares if len(values) <= _VALUES_SHOWN else f"{shares} (the {_VALUES_SHOWN} most frequent of {len(values)})"


def _some(files: list[str]) -> str:
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    return ", ".join(files[:_SHOWN]) + more
