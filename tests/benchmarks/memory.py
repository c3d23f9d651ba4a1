"""Memory that a call allocates on the CPU; of all registered losses, those that need the most beside their inputs."""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile
from torch.profiler._utils import traverse_dfs

from kd_tasks.engine.progress import track
from tests.benchmarks import Row

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # read when the first profiler starts; it would write to stderr

SMALLEST = 2**18


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes that were allocated at once by `call`; what it frees of older memory does not count.

    Read from the allocator through the profiler: what autograd saves and what operations use inside is part of it.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        call()
    tree = traverse_dfs(profiler.profiler.kineto_results.experimental_event_tree())
    events = [event for event in tree if event.tag == _EventType.Allocation]
    sizes: dict[int, int] = {}
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_time_ns):
        pointer, size = event.extra_fields.ptr, event.extra_fields.alloc_size
        if size > 0:
            sizes[pointer] = size
            held += size
        else:
            held -= sizes.pop(pointer, 0)
        most = max(most, held)
    return most


def run(batch: int = 16, size: tuple[int, int] = (32, 32), shown: int = 8) -> list[Row]:
    """The losses whose value and gradient take the most memory, as a multiple of their inputs and parameters.

    Only of inputs that are large enough to say something: in small ones, the pairs of samples count for more.

    Args:
        batch: samples.
        size: height and width of maps.
        shown: how many losses are reported.
    """
    sys.path.insert(0, str(Path(__file__).parent.parent / "kernel"))  # its modules feed every registered loss
    loss_inputs = importlib.import_module("loss_inputs")
    names = track(list(loss_inputs.registered()), "memory of losses")
    rows = [beside_inputs(loss_inputs, name, batch, size) for name in names]
    large = [row for row in rows if min(row.reference) >= SMALLEST]
    return sorted(large, key=lambda row: row.ratio, reverse=True)[:shown]


def beside_inputs(loss_inputs: ModuleType, name: str, batch: int, size: tuple[int, int]) -> Row:
    """Memory of value and gradient of the loss called `name`, beside its inputs and parameters."""
    inputs = loss_inputs.random_inputs(loss_inputs.BUILDERS[name](), batch, size)
    loss = loss_inputs.built(name, inputs)
    given = [*loss_inputs.leaves(inputs.student), *loss_inputs.leaves(inputs.teacher), *inputs.context.values()]
    needed = [x.requires_grad_() for x in (*loss_inputs.leaves(inputs.student), *loss.parameters())]

    def value_and_gradients() -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(loss_inputs.valued(loss, inputs), needed, allow_unused=True)

    held = sum(x.nbytes for x in (*given, *loss.parameters(), *loss.buffers()))
    return Row(f"memory / inputs: {name}", [peak_bytes(value_and_gradients)], [held], None, "B")
