"""Losses that compare samples: two processes with half a batch each have the loss of one process with all of it."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from loss_inputs import BUILDERS, Inputs, built, each, leaves, random_inputs
from torch import Tensor

from kd_tasks.losses import RelationalLoss

BATCH = 8
RELATIONAL = [name for name, build in BUILDERS.items() if isinstance(build(), RelationalLoss)]


def result(name: str, rows: slice, gather: bool) -> dict[str, Any]:
    """Value and parameter gradients on some rows of the batch; the student is its input times trained weights."""
    inputs = random_inputs(BUILDERS[name](), batch=BATCH, dtype=torch.float64)
    loss = built(name, inputs).double()
    loss.gather = gather
    generator = torch.Generator().manual_seed(5)
    weights = [
        torch.rand(x.shape[1:], generator=generator, dtype=torch.float64).add_(0.5).requires_grad_()
        for x in leaves(inputs.student)
    ]
    waiting = iter(weights)
    student = each(lambda x: next(waiting) * x[rows], inputs.student)
    context = {key: value[rows] for key, value in inputs.context.items()}
    torch.manual_seed(1)
    part = Inputs(student, each(lambda x: x[rows], inputs.teacher), context)
    value = loss(part.student, part.teacher, **part.context)
    value.backward()
    trained = [*weights, *(p for p in loss.parameters() if p.requires_grad)]
    return {
        "value": value.detach(),
        "gradients": [torch.zeros_like(p) if p.grad is None else p.grad for p in trained],
        "buffers": [b.detach().clone() for b in loss.buffers()],
    }


def rank_main(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    half = BATCH // 2
    results = {}
    for name in RELATIONAL:
        found = result(name, slice(half * rank, half * rank + half), gather=True)
        for gradient in found["gradients"]:
            dist.all_reduce(gradient)
            gradient /= 2
        results[name] = found
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = int(server.getsockname()[1])
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.multiprocessing.spawn(rank_main, args=(port, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", RELATIONAL)
def test_two_processes_are_one_with_the_whole_batch(name: str, ranks: list[dict[str, dict[str, Any]]]) -> None:
    whole = result(name, slice(None), gather=False)
    for found in ranks:
        same([found[name]["value"]], [whole["value"]])
        same(found[name]["gradients"], whole["gradients"])
        same(found[name]["buffers"], whole["buffers"])


@pytest.mark.parametrize("name", RELATIONAL)
def test_half_a_batch_alone_has_another_loss(name: str) -> None:
    half = result(name, slice(0, BATCH // 2), gather=False)["value"]
    assert not torch.allclose(half, result(name, slice(None), gather=False)["value"], rtol=1e-9)


def same(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
