"""Taps: tensors read from a network while it runs.

A tap is named by one of the network's outputs (`logits`), or by a module's dotted path (`backbone.layer3`, or
`backbone.layer3:in` for the module's first input).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kd_tasks.errors import UserError, nearest

INPUT_SUFFIX = ":in"


@dataclass
class _Reading:
    """What one tap saw in one forward pass."""

    value: Any
    version: int
    calls: int = 1


class Taps:
    """Runs a network and reads the named taps on the way.

    Only the modules that are asked for carry a hook, and a hook records only inside `run`. A tap whose tensor is
    overwritten later in the pass (by an in-place activation or addition) is copied when it is read; which ones are,
    the probe finds out.

    Args:
        network: tensor in, dict of named outputs out.
        names: the taps to read.
        probe: an input to try the network with. It is run in eval mode, without gradients; no buffer changes.
        where: how messages call this network, such as `model.student`.

    Raises:
        UserError: for a tap that does not exist, that is called more than once in a pass, or that is no tensor.
    """

    def __init__(self, network: nn.Module, names: Iterable[str], probe: Tensor, where: str = "network") -> None:
        self.network = network
        self.names = tuple(dict.fromkeys(names))
        self.where = where
        self._recording: dict[str, _Reading] | None = None
        self._copied: set[str] = set()
        self._hook_modules()
        self.shapes = self._try(probe)

    def run(self, inputs: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The network's outputs and the taps' tensors, by name."""
        outputs, readings = self._record(inputs)
        return outputs, {n: outputs[n] if n in outputs else self._intact(n, readings) for n in self.names}

    def _hook_modules(self) -> None:
        modules = dict(self.network.named_modules())
        for name in self.names:
            path = name.removesuffix(INPUT_SUFFIX)
            if path not in modules or not path:
                continue
            if name.endswith(INPUT_SUFFIX):
                modules[path].register_forward_pre_hook(partial(self._read_input, name))
            else:
                modules[path].register_forward_hook(partial(self._read_output, name))

    def _read_input(self, name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._keep(name, inputs[0] if inputs else None)

    def _read_output(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self._keep(name, output)

    def _keep(self, name: str, value: Any) -> None:
        if self._recording is None:
            return
        if name in self._recording:
            self._recording[name].calls += 1
            return
        if name in self._copied:
            value = value.clone()
        self._recording[name] = _Reading(value, value._version if isinstance(value, Tensor) else 0)

    def _record(self, inputs: Tensor) -> tuple[dict[str, Tensor], dict[str, _Reading]]:
        self._recording = {}
        try:
            outputs = self.network(inputs)
            return outputs, self._recording
        finally:
            self._recording = None

    def _intact(self, name: str, readings: Mapping[str, _Reading]) -> Tensor:
        reading = readings[name]
        compiled = self.network._compiled_call_impl is not None  # its tensors are counted differently
        if not compiled and reading.value._version != reading.version:
            raise UserError(
                f"{self.where}: the tensor of the tap {name!r} is overwritten in train mode, which the probe in eval "
                "mode could not see; tap the module that overwrites it, or make that module work out of place."
            )
        return reading.value

    def _try(self, probe: Tensor) -> dict[str, tuple[int, ...]]:
        with evaluating(self.network), torch.no_grad(), torch.random.fork_rng(devices=[]):
            for module in self.network.modules():
                if isinstance(module, nn.modules.dropout._DropoutNd) and module.inplace:
                    module.train()  # overwrites its input in this mode alone
            outputs, readings = self._record(probe)
        if not isinstance(outputs, Mapping):
            kind = type(outputs).__name__
            raise UserError(f"{self.where}: a network gives a dict of named outputs, but this one gives a {kind}.")
        shapes = {}
        for name in self.names:
            if name in outputs:
                shapes[name] = tuple(outputs[name].shape)
                continue
            reading = readings.get(name)
            if reading is None:
                raise UserError(self._missing(name, outputs))
            if not isinstance(reading.value, Tensor):
                kind = type(reading.value).__name__
                raise UserError(f"{self.where}: the tap {name!r} is a {kind}, not a tensor; tap a module inside it.")
            if reading.calls > 1:
                raise UserError(
                    f"{self.where}: the module {name!r} runs {reading.calls} times in one pass, so that a tap on it is "
                    "ambiguous; tap a module that runs once."
                )
            if reading.value._version != reading.version:
                self._copied.add(name)
            shapes[name] = tuple(reading.value.shape)
        return shapes

    def _missing(self, name: str, outputs: Iterable[str]) -> str:
        known = [*outputs, *(n for n, _ in self.network.named_modules() if n)]
        path = name.removesuffix(INPUT_SUFFIX)
        if path in known:
            return f"{self.where}: the module {path!r} does not run in this network's eval mode, so it gives no tap."
        top = ", ".join(dict.fromkeys([*outputs, *(n for n in known if n.count(".") <= 1)]))
        return f"{self.where}: no tap {name!r}.{nearest(path, known)} Taps begin: {top}. 'kd-tasks taps' lists all."


@dataclass
class TapInfo:
    """One tap of a network: its name, the kind of module (`output` for a named output), its shape."""

    name: str
    kind: str
    shape: tuple[int, ...]
    calls: int = field(default=1)


def list_taps(network: nn.Module, probe: Tensor) -> list[TapInfo]:
    """Every tensor that a tap of `network` can read, in the order in which they appear in a pass."""
    found: dict[str, TapInfo] = {}

    def read(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not isinstance(output, Tensor):
            return
        if name in found:
            found[name].calls += 1
            return
        found[name] = TapInfo(name, type(module).__name__, tuple(output.shape))

    handles = [m.register_forward_hook(partial(read, name)) for name, m in network.named_modules() if name]
    try:
        with evaluating(network), torch.no_grad():
            outputs = network(probe)
    finally:
        for handle in handles:
            handle.remove()
    named = [TapInfo(name, "output", tuple(value.shape)) for name, value in outputs.items()]
    return [*found.values(), *named]


class evaluating:
    """Context in which `module` is in eval mode; afterwards every submodule has its own mode back."""

    def __init__(self, module: nn.Module) -> None:
        self.modes = [(m, m.training) for m in module.modules()]
        self.module = module

    def __enter__(self) -> nn.Module:
        return self.module.eval()

    def __exit__(self, *error: object) -> None:
        for module, mode in self.modes:
            module.training = mode
