"""Several processes, autocast and compilation, on a CPU."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from torch import nn

from kd_tasks.engine.train import test as evaluated
from kd_tasks.engine.train import train
from kd_tasks.errors import UserError

STUDENT = {"type": "ToyNet", "norm": False}  # BatchNorm would see half a batch in each process
ITERATIONS = {
    "model.student": {"_delete_": True, **STUDENT},
    "train_cfg": {"_delete_": True, "by_epoch": False, "max_iters": 3},
    "param_scheduler": [],
    "custom_hooks": [{"type": "ToyKeeper"}],
}
CRITIC = {
    "model.transfers.critic": {
        "on": "logits",
        "loss": {"type": "Hinge", "critic": {"type": "ToyCritic"}},
        "weight": 0.5,
        "begin": "iter 1",
    },
    "optim_wrapper.critic": {"optimizer": {"type": "SGD", "lr": 0.1}},
}
TIMED = {"model.transfers.hint.begin": "iter 1", "model.task_weight": {"start": 0.0, "end": 1.0, "until": "iter 2"}}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def as_rank(rank: int, size: int, port: int, folder: Path, changes: dict[str, Any]) -> None:
    """What torchrun sets for each of its processes, then the training."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_RESTART_COUNT": "0"}
    train(toys.config(folder, **changes), launcher="pytorch")


def train_on_two(folder: Path, changes: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
    """What each of two ranks has at the end, its batches half as large."""
    context, port = multiprocessing.get_context("fork"), free_port()
    ranks = [context.Process(target=as_rank, args=(rank, 2, port, folder, changes)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    return [torch.load(folder / f"rank_{rank}.pth") for rank in range(2)]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="distillation"),
        pytest.param(TIMED, id="timed transfers"),
        pytest.param(CRITIC, id="adversarial"),
    ],
)
def test_two_processes_with_batch_b_are_one_with_2b(tmp_path: Path, changes: dict[str, Any]) -> None:
    changes = {**ITERATIONS, **changes}
    toys.trained(tmp_path / "one", **changes, **{"train_dataloader.batch_size": 4})
    expected = torch.load(tmp_path / "one" / "rank_0.pth")
    found = train_on_two(tmp_path / "two", {**changes, "train_dataloader.batch_size": 2})
    torch.manual_seed(3)
    start = toys.ToyNet(norm=False).state_dict()
    assert not torch.allclose(expected["network.head.weight"], start["head.weight"], atol=1e-3)
    for key, value in expected.items():
        torch.testing.assert_close(found[0][key], value, rtol=1e-4, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")
        assert torch.equal(found[0][key], found[1][key]), key
    student = torch.load(tmp_path / "two" / "student.pth")["state_dict"]
    assert all(torch.equal(value, found[0][f"network.{key}"]) for key, value in student.items())


def test_torchrun_and_the_command_line(tmp_path: Path) -> None:
    keep = {**ITERATIONS, "custom_imports": {"imports": ["toys"]}, **toys.TESTING}
    config = tmp_path / "config.py"
    config.write_text(toys.config(tmp_path / "run", **keep).pretty_text)
    environment = {**os.environ, "PYTHONPATH": str(Path(toys.__file__).parent), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    command += ["-m", "kd_tasks.cli", "train", str(config), "--launcher", "pytorch"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        _, errors = process.communicate(timeout=100)
    finally:
        process.terminate()  # should the ranks hang, torchrun ends them
        process.wait(60)
    assert process.returncode == 0, errors
    first, second = (torch.load(tmp_path / "run" / f"rank_{rank}.pth") for rank in range(2))
    assert all(torch.equal(second[key], value) for key, value in first.items())
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]
    assert metrics == evaluated(toys.config(tmp_path / "run", **keep), str(tmp_path / "run")).metrics


def test_a_launcher_without_torchrun(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--launcher pytorch: start it with torchrun"):
        train(toys.config(tmp_path / "run"), launcher="pytorch")


def test_bfloat16_autocast_trains(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []

    @toys.CRITERIA.register
    class ToyWatching(toys.ToyCriterion):
        def forward(self, outputs: Any, targets: Any) -> dict[str, torch.Tensor]:
            seen.append(outputs["logits"].dtype)
            return super().forward(outputs, targets)

    changes = {**ITERATIONS, "model.criterion": {"type": "ToyWatching"}}
    toys.trained(tmp_path / "bf16", amp="bf16", **changes)
    toys.trained(tmp_path / "fp32", **changes)
    assert set(seen[:3]) == {torch.bfloat16} and set(seen[3:]) == {torch.float32}
    half, full = (torch.load(tmp_path / name / "student.pth")["state_dict"] for name in ("bf16", "fp32"))
    for key, value in full.items():
        assert half[key].dtype == torch.float32
        assert not torch.equal(half[key], value)
        torch.testing.assert_close(half[key], value, rtol=0.1, atol=0.02)


@pytest.mark.parametrize(("precision", "message"), [("fp16", "needs a GPU"), ("int8", "none of bf16, fp16")])
def test_precisions_that_cannot_be(tmp_path: Path, precision: str, message: str) -> None:
    if precision == "fp16" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match=f"--amp.*{message}"):
        toys.trained(tmp_path / "run", amp=precision)


@pytest.mark.parametrize("compile_teacher", [False, True])
def test_compiled_it_trains_as_without(tmp_path: Path, compile_teacher: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_by = nn.Module.compile  # the whole of inductor would take half a minute
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: compiled_by(self, **{"backend": "aot_eager", **how}))
    changes = {**ITERATIONS, "model.teacher.prepare": {"compile": compile_teacher}}
    toys.trained(tmp_path / "compiled", **changes, compile=True)
    toys.trained(tmp_path / "plain", **ITERATIONS)
    compiled, plain = (torch.load(tmp_path / name / "student.pth")["state_dict"] for name in ("compiled", "plain"))
    for key, value in plain.items():
        torch.testing.assert_close(compiled[key], value, rtol=1e-4, atol=1e-5)
