"""When a transfer acts and how strongly: moments of a training, and weights that change over it."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kd_tasks.errors import UserError

RAMPS = ("linear", "cosine", "sigmoid", "step")


@dataclass(frozen=True)
class Moment:
    """A point of a training: `epoch 5`, `epoch 2.5`, `iter 1000`. Epochs and iterations count from 0."""

    unit: str
    value: float

    @classmethod
    def parse(cls, text: str, where: str) -> "Moment":
        """The moment that `text` names.

        Raises:
            UserError: if it is not of the form `epoch N` or `iter N`.
        """
        match = re.fullmatch(r"(epoch|iter)\s+(\d+(?:\.\d+)?)", text.strip()) if isinstance(text, str) else None
        if match is None:
            raise UserError(f"{where}: {text!r} is no moment of a training; write 'epoch 5' or 'iter 1000'.")
        return cls(match[1], float(match[2]))

    def iteration(self, iterations_per_epoch: int) -> float:
        """The moment in iterations."""
        return self.value * (iterations_per_epoch if self.unit == "epoch" else 1)


class Weight:
    """The weight of a transfer over the training.

    Args:
        value: a number, or `dict(start=, end=, begin=, until=, ramp=)`: `start` up to the moment `begin` (default: the
            beginning), `end` from the moment `until` on, and in between a `linear` or `cosine` ramp, the `sigmoid` ramp
            `exp(-5 (1 - x)^2)` of Mean Teacher (Tarvainen and Valpola 2017), or `start` with `ramp='step'`.
        where: the config path, for messages.

    Raises:
        UserError: for an unknown key, moment or ramp, or an `until` that is not after `begin`.
    """

    def __init__(self, value: float | Mapping[str, Any], where: str = "weight") -> None:
        if isinstance(value, bool) or not isinstance(value, int | float | Mapping):
            raise UserError(f"{where}: {value!r} is neither a number nor dict(start=, end=, begin=, until=, ramp=).")
        if not isinstance(value, Mapping):
            self.start = self.end = float(value)
            self.begin = self.until = Moment("iter", 0)
            self.ramp = "step"
            return
        self._read(where, **_checked(value, where))

    def _read(
        self,
        where: str,
        until: str,
        start: float = 0.0,
        end: float = 1.0,
        begin: str = "iter 0",
        ramp: str = "linear",
    ) -> None:
        if ramp not in RAMPS:
            raise UserError(f"{where}.ramp: {ramp!r} is none of {', '.join(RAMPS)}.")
        for name, value in (("start", start), ("end", end)):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise UserError(f"{where}.{name}: {value!r} is not a number.")
        self.start, self.end, self.ramp = float(start), float(end), ramp
        self.begin, self.until = Moment.parse(begin, f"{where}.begin"), Moment.parse(until, f"{where}.until")
        if self.begin.unit == self.until.unit and self.begin.value > self.until.value:
            raise UserError(f"{where}: begins at {begin!r}, after its end {until!r}.")

    def at(self, iteration: int, iterations_per_epoch: int) -> float:
        """The weight in iteration `iteration` (from 0)."""
        begin, until = (m.iteration(iterations_per_epoch) for m in (self.begin, self.until))
        if iteration >= until:
            return self.end
        if iteration < begin or self.ramp == "step":
            return self.start
        share = (iteration - begin) / (until - begin)
        if self.ramp == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        if self.ramp == "sigmoid":
            share = math.exp(-5 * (1 - share) ** 2)
        return self.start + (self.end - self.start) * share


def _checked(value: Mapping[str, Any], where: str) -> dict[str, Any]:
    known = {"start", "end", "begin", "until", "ramp"}
    unknown = sorted(set(value) - known)
    if unknown:
        raise UserError(f"{where}: unknown {', '.join(map(repr, unknown))}; it takes {', '.join(sorted(known))}.")
    if "until" not in value:
        raise UserError(f"{where}: a weight that changes needs 'until', such as until='epoch 5'.")
    return dict(value)
