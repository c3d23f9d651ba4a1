"""Progress with an estimate of the time left, for everything that takes longer than a moment."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")

console = Console(stderr=True)

SECONDS_BETWEEN_LINES = 5.0


class Bars(Progress):
    """Bars with count, elapsed time and time left; where the output is no terminal, a line every few seconds."""

    def __init__(self) -> None:
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._told = time.monotonic()

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Move a bar on, see `rich.progress.Progress.update`."""
        super().update(task_id, **changes)
        if self.disable and time.monotonic() - self._told >= SECONDS_BETWEEN_LINES:
            self._told = time.monotonic()
            print(described(self._tasks[task_id]), file=sys.stderr, flush=True)


def described(task: Task) -> str:
    """A bar as a line of text."""
    share = f" {task.completed:g}/{task.total:g}" if task.total else f" {task.completed:g}"
    elapsed = task.elapsed or 0.0
    left = elapsed * (task.total - task.completed) / task.completed if task.total and task.completed else None
    ending = f", {timedelta(seconds=round(left))} left" if left is not None else ""
    return f"{task.description}{share}{ending} {task.fields.get('note', '')}".rstrip()


def progress_bar() -> Bars:
    """Bars that are shown while they are entered as a context or started."""
    return Bars()


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """The items, one by one, with a bar on the terminal."""
    with progress_bar() as bar:
        task = bar.add_task(description, total=total if total is not None else length_of(items), note="")
        for item in items:
            yield item
            bar.update(task, advance=1)


def length_of(items: Iterable[object]) -> int | None:
    """The number of items if it is known."""
    return len(items) if isinstance(items, Sized) else None


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
