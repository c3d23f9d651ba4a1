"""What the tests of all losses are fed with: reference values, other settings, unusual inputs; one module a family.

A module of this package may have
- `CASES`: reference values, see `Case`;
- `SETTINGS`: by `Loss-setting`, how to build a registered loss with other settings than its defaults, or one that
  cannot be built without arguments (then by its own name);
- `SHAPES`: by loss, `(batch, (height, width)) -> (student shapes, teacher shapes)` where the word in `taps` does not
  say it; a list of shapes stands for a list of tensors;
- `CONTEXT`: by name, how to make a context tensor, from the student's first tensor;
- `MADE`: by loss, `(student, teacher, context) -> (student, teacher, context)`: what the loss is called with, where the
  one must be computed from the other, made of the tensors that the tests change and differentiate by;
- `STOPPED`: by loss or setting, what in its formula gets no gradient on purpose, so that it is not that of the value;
- `BEYOND_HALF`: by `(loss or setting, hazard)`, why the slopes cannot be finite in float16: the value is tested as it
  is, and the gradient by the same numbers in float32;
- `UNDEFINED`: by `(loss or setting, hazard)`, the message of the error that an undefined case must raise;
- `GROWS`: by loss or setting, the factor of the value when a batch is taken twice over (None: no simple one), where
  the docstring says that the loss is not invariant to it;
- `TRAINING`: by loss or setting, what it takes to halve the loss in 50 steps: `dict(lr=..., scale=..., floor=...)`.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FIXTURES = Path(__file__).parents[2] / "fixtures" / "losses"
Arrays = Mapping[str, np.ndarray]


def read(name: str) -> dict[str, np.ndarray]:
    """The arrays of a fixture."""
    with np.load(FIXTURES / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


@dataclass(frozen=True)
class Case:
    """One reference value, compared with all the gradients that the fixture holds for it.

    Attributes:
        fixture: name of the file.
        run: the value from the fixture's arrays as tensors: `in_x` is called `x`, `param_w` is called `param_w`.
        variant: of the fixture; empty for its primary case.
        rtol: relative tolerance of the value in double precision.
        gradient_rtol: likewise of the gradients, relative to the largest element.
        without: gradients that are not compared; a comment beside the case says why.
    """

    fixture: str
    run: Callable[[Mapping[str, Tensor]], Tensor]
    variant: str = ""
    rtol: float = 1e-6
    gradient_rtol: float = 1e-6
    without: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return f"{self.fixture}-{self.variant or 'primary'}"

    def compute(self, data: Arrays, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
        """Value and gradients, the gradients by the names of the fixture."""
        leaves = dict(_leaves(data, dtype))
        value = self.run(leaves)
        value.backward()
        return value.detach(), {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}

    def expected(self, data: Arrays, dtype: torch.dtype) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Reference value and gradients; those of a double-precision run where there are."""
        bits = "64" if dtype == torch.float64 and "out64" in data else ""
        tail = f"__{self.variant}" if self.variant else ""
        start = f"grad{bits}__{self.variant}__" if self.variant else f"grad{bits}_"
        gradients = {key.removeprefix(start): data[key] for key in data if key.startswith(start)}
        if not self.variant:
            gradients = {name: value for name, value in gradients.items() if not name.startswith("_")}
        named = {_leaf_name(name, data): value for name, value in gradients.items() if name not in self.without}
        return data[f"out{bits}{tail}"], named


def _leaves(data: Arrays, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    for key, array in data.items():
        if not key.startswith(("in_", "param_")):
            continue
        tensor = torch.from_numpy(np.array(array))
        yield key.removeprefix("in_"), tensor.to(dtype).requires_grad_() if tensor.is_floating_point() else tensor


def _leaf_name(gradient: str, data: Arrays) -> str:
    return gradient if f"in_{gradient}" in data or gradient in data else f"param_{gradient}"


def collected(name: str) -> list[Any]:
    """The attribute `name` of every family module that has it."""
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return [getattr(module, name) for module in modules if hasattr(module, name)]


def merged(name: str) -> dict[Any, Any]:
    """The dict `name` of every family module, as one."""
    return {key: value for part in collected(name) for key, value in part.items()}
