"""A frozen network made ready for inference: same outputs, less time."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import fusion
from torch.nn.utils.parametrize import is_parametrized

from kd_tasks.errors import UserError
from kd_tasks.taps import INPUT_SUFFIX, evaluating

TOLERANCE = 1e-4
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Preparation:
    """What is done to a frozen network.

    Args:
        fold_batchnorm: fold batch normalisation into the convolution before it, where no tap reads in between.
        channels_last: hold weights and input in the channels-last memory format.
        dtype: `bfloat16` or `float16` to compute in half precision; taps are handed on in float32.
        compile: run the network through `torch.compile`, once its taps are known; see `FrozenTeacher.compile`.
    """

    fold_batchnorm: bool = True
    channels_last: bool = True
    dtype: str | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UserError(f"prepare.dtype: {self.dtype!r} is none of {', '.join(DTYPES)}.")

    def input(self, inputs: Tensor) -> Tensor:
        """`inputs` in the memory format and precision that the prepared network takes."""
        if self.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs if self.dtype is None else inputs.to(DTYPES[self.dtype])


def prepare_for_inference(network: nn.Module, how: Preparation, taps: Iterable[str], probe: Tensor) -> nn.Module:
    """A copy of `network` (in eval mode, frozen) prepared as `how` says, but not yet compiled.

    Folding is tried on `probe` and given up if an output differs by more than 1e-4 of the largest output.
    """
    prepared = copy.deepcopy(network).eval()
    if how.fold_batchnorm:
        prepared = folded(prepared, taps, probe.float())
    if how.channels_last:
        prepared = prepared.to(memory_format=torch.channels_last)
    if how.dtype is not None:
        prepared = prepared.to(DTYPES[how.dtype])
    return prepared


def folded(network: nn.Module, taps: Iterable[str], probe: Tensor) -> nn.Module:
    """`network` with every batch normalisation folded that directly follows a convolution no tap reads."""
    pairs = _adjacent(network, set(taps), probe)
    result = copy.deepcopy(network)
    for conv, norm in pairs:
        fused = fusion.fuse_conv_bn_eval(
            cast(nn.Conv2d, result.get_submodule(conv)), cast(nn.BatchNorm2d, result.get_submodule(norm))
        )
        result.set_submodule(conv, fused.requires_grad_(False))
        result.set_submodule(norm, nn.Identity())
    return result if _agree(network, result, probe) else network


def _adjacent(network: nn.Module, taps: set[str], probe: Tensor) -> list[tuple[str, str]]:
    """Paths (convolution, batch normalisation) where the one's output is the other's input, each running once."""
    producers: dict[int, str] = {}
    held: list[Tensor] = []
    consumers: dict[str, list[str]] = {}
    runs: dict[str, int] = {}

    def before(path: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        for value in inputs:
            if id(value) in producers:
                consumers.setdefault(producers[id(value)], []).append(path)

    def after(path: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        runs[path] = runs.get(path, 0) + 1
        if isinstance(module, nn.Conv2d) and isinstance(output, Tensor):
            producers[id(output)] = path
            held.append(output)

    leaves = {path: m for path, m in network.named_modules() if not list(m.children())}
    handles = []
    for path, module in leaves.items():
        handles.append(module.register_forward_pre_hook(lambda m, i, path=path: before(path, m, i)))
        handles.append(module.register_forward_hook(lambda m, i, o, path=path: after(path, m, i, o)))
    try:
        with evaluating(network), torch.no_grad():
            network(probe)
    finally:
        for handle in handles:
            handle.remove()
    return [
        (conv, readers[0])
        for conv, readers in consumers.items()
        if len(readers) == 1
        and _foldable(leaves[conv], leaves[readers[0]])
        and runs[conv] == runs[readers[0]] == 1
        and not taps & {conv, readers[0] + INPUT_SUFFIX}
    ]


def _foldable(conv: nn.Module, norm: nn.Module) -> bool:
    return isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and not is_parametrized(conv)


def _agree(first: nn.Module, second: nn.Module, probe: Tensor) -> bool:
    with evaluating(first), evaluating(second), torch.no_grad():
        expected: Mapping[str, Tensor] = first(probe)
        found: Mapping[str, Tensor] = second(probe)
    return all(
        bool((found[k] - value).abs().max() <= TOLERANCE * value.abs().max().clamp(min=1.0))
        for k, value in expected.items()
    )
