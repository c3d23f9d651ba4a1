"""Progress with an estimate of the time left, for everything that takes longer than a moment."""

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

console = Console(stderr=True)


def progress_bar() -> Progress:
    """A bar with count, elapsed time and time left; silent where the output is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=False,
    )


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """The items, one by one, with a bar on the terminal."""
    with progress_bar() as bar:
        task = bar.add_task(description, total=total if total is not None else length_of(items), note="")
        for item in items:
            yield item
            bar.advance(task)


def length_of(items: Iterable[object]) -> int | None:
    """The number of items if it is known."""
    return len(items) if isinstance(items, Sized) else None


@contextmanager
def announced(description: str) -> Iterator[None]:
    """A spinner while something runs whose length is unknown."""
    with console.status(description):
        yield


@contextmanager
def counting() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each thing that is counted; takes its name, how many are done, and of how many."""
    with progress_bar() as bar:
        tasks: dict[str, Any] = {}

        def report(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, note="")
            bar.update(tasks[name], completed=done, total=total)

        yield report
