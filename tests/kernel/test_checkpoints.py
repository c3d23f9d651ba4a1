"""Checkpoints: plain data, written whole or not at all, read without running code."""

import errno
import os
import pickle
import subprocess
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from mmengine.logging import HistoryBuffer
from torch import nn

from kd_tasks.engine import checkpoints
from kd_tasks.engine.checkpoints import latest_checkpoint, load_network, plain, read_checkpoint, save, save_student
from kd_tasks.errors import UserError

unsafe = torch.serialization.get_unsafe_globals_in_checkpoint


@pytest.fixture
def student(tmp_path: Path) -> Path:
    save_student(toys.randomised(toys.ToyNet()), tmp_path / "student.pth", {"epoch": 3, "score": np.float32(0.5)})
    return tmp_path / "student.pth"


# --- The student -----------------------------------------------------------------------------------------------------


def test_the_student_loads_into_a_plain_network_with_stock_torch(student: Path) -> None:
    content = torch.load(student)
    network = toys.ToyNet()
    network.load_state_dict(content["state_dict"])
    assert torch.equal(network.stage1[1].running_var, toys.randomised(toys.ToyNet()).stage1[1].running_var)
    assert content["meta"]["epoch"] == 3 and content["meta"]["score"] == 0.5
    assert unsafe(student) == []


def test_a_distillers_student_holds_no_tensor_of_the_teacher(tmp_path: Path) -> None:
    model = toys.distiller(teacher={"type": "ToyNet", "width": 64})
    save_student(model.network, tmp_path / "student.pth", {})
    state = torch.load(tmp_path / "student.pth")["state_dict"]
    assert {k: tuple(v.shape) for k, v in state.items()} == {
        k: tuple(v.shape) for k, v in toys.ToyNet().state_dict().items()
    }
    assert (tmp_path / "student.pth").stat().st_size < 20_000


@pytest.mark.parametrize("form", ["student", "folder", "state dict", "run", "data parallel"])
def test_every_form_of_a_checkpoint_loads(form: str, student: Path) -> None:
    path, state = student, torch.load(student)["state_dict"]
    extra = {"transfers.hint.connector.layers.0.weight": torch.zeros(1)}
    if form == "folder":
        path = student.parent
    elif form == "state dict":
        torch.save(state, path)
    elif form == "run":
        torch.save({"state_dict": {**{f"network.{k}": v for k, v in state.items()}, **extra}}, path)
    elif form == "data parallel":
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    network = toys.ToyNet()
    load_network(network, path)
    assert all(torch.equal(network.state_dict()[key], value) for key, value in state.items())


def test_a_network_whose_own_part_is_called_network(tmp_path: Path) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Linear(2, 2)
            self.head = nn.Linear(2, 2)

    source, target = Wrapped(), Wrapped()
    save_student(source, tmp_path / "student.pth", {})
    load_network(target, tmp_path / "student.pth")
    assert torch.equal(target.network.weight, source.network.weight)
    assert torch.equal(target.head.weight, source.head.weight)


# --- Faults ----------------------------------------------------------------------------------------------------------


def test_another_architecture_lists_the_keys(student: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_network(toys.ToyNet(width=5, norm=False), student, "model.checkpoint")
    message = str(caught.value)
    assert message.startswith(f"model.checkpoint: {student} holds the weights of another architecture than ToyNet")
    assert "stage1.1.weight is not in the network" in message
    assert "stage1.0.weight is (4, 3, 3, 3) in the file and (5, 3, 3, 3) in the network" in message
    assert message.endswith("more.") and message.count(";") == 2 * checkpoints.LISTED - 1
    network = toys.ToyNet(width=5)
    with pytest.raises(UserError, match=r"stage1\.0\.weight is \(4, 3, 3, 3\) in the file and \(5, 3, 3, 3\)"):
        load_network(network, student)


def test_a_network_that_failed_to_load_is_as_it_was(student: Path) -> None:
    network = toys.ToyNet(width=4, norm=False)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(UserError):
        load_network(network, student)
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())


class Malicious:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    trace, file = tmp_path / "was_run", tmp_path / "evil.pth"
    torch.save(
        {"state_dict": toys.ToyNet().state_dict(), "meta": Malicious(trace)},
        file,
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(UserError, match=r"evil\.pth is refused.*could run code.*system"):
        read_checkpoint(file)
    file.write_bytes(pickle.dumps(Malicious(trace)))
    with pytest.raises(UserError, match=r"evil\.pth"):
        read_checkpoint(file)
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02}", b"PK\x03\x04 no archive", bytes(300)])
def test_no_checkpoint_at_all(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "student.pth"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"here: .*student\.pth (cannot be read; it is damaged|holds a dict|.*another)"):
        load_network(toys.ToyNet(), file, "here")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file(student: Path, share: float) -> None:
    content = student.read_bytes()
    student.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"here: .*student\.pth cannot be read; it is damaged"):
        read_checkpoint(student, "here")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"here: .*nowhere\.pth does not exist"):
        read_checkpoint(tmp_path / "nowhere.pth", "here")
    with pytest.raises(UserError, match=r"here: .*student\.pth does not exist"):
        read_checkpoint(tmp_path, "here")


@pytest.mark.parametrize("content", [[1, 2], "text", torch.zeros(2)])
def test_a_file_that_holds_something_else(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "student.pth")
    with pytest.raises(UserError, match="not a checkpoint"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [{"state_dict": 3}, {"state_dict": {1: torch.zeros(2)}}, {"head.weight": "x"}])
def test_a_state_dict_that_is_none(tmp_path: Path, content: dict) -> None:
    torch.save(content, tmp_path / "student.pth")
    with pytest.raises(UserError, match="another architecture than ToyNet"):
        load_network(toys.ToyNet(), tmp_path)


# --- Writing ---------------------------------------------------------------------------------------------------------


def test_values_are_made_plain(tmp_path: Path) -> None:
    value = {
        "number": np.float64(1.5),
        "array": np.arange(3),
        "pair": namedtuple("Pair", "a b")(1, np.int64(2)),
        "ordered": OrderedDict(a=nn.Parameter(torch.ones(2))),
        "history": HistoryBuffer([1, 2], [1, 1]),
        "path": Path("a/b"),
        "nothing": None,
        "betas": (0.9, 0.99),
        "version": torch.__version__,
        "several": {np.int64(1): {2, 3}},
    }
    save(value, tmp_path / "a.pth")
    assert unsafe(tmp_path / "a.pth") == []
    read = torch.load(tmp_path / "a.pth")
    assert read["number"] == 1.5 and type(read["number"]) is float
    assert torch.equal(read["array"], torch.arange(3))
    assert read["pair"] == [1, 2] and read["betas"] == (0.9, 0.99)
    assert type(read["ordered"]) is OrderedDict and type(read["ordered"]["a"]) is torch.Tensor
    assert read["path"] == "a/b" and read["nothing"] is None
    assert read["version"] == str(torch.__version__) and read["several"] == {1: {2, 3}}


def test_plain_copies_nothing_that_is_on_the_cpu() -> None:
    tensor = torch.ones(3)
    assert plain({"a": [tensor]})["a"][0].data_ptr() == tensor.data_ptr()


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["torch.save", "os.fsync"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    student: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    before = student.read_bytes()
    monkeypatch.setattr(where, full_disk)
    with pytest.raises(UserError, match=r"student\.pth: could not be written: the disk is full"):
        save_student(toys.ToyNet(), student, {})
    assert student.read_bytes() == before
    assert [f.name for f in student.parent.iterdir()] == ["student.pth"]
    with pytest.raises(UserError, match="nothing was half-written"):
        save_student(toys.ToyNet(), student.parent / "new.pth", {})
    assert [f.name for f in student.parent.iterdir()] == ["student.pth"]


def test_a_real_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        save_student(toys.ToyNet(), disk / "student.pth", {})
        before = (disk / "student.pth").read_bytes()
        with pytest.raises(UserError, match="the disk is full; the file of that name is as it was before"):
            save_student(toys.ToyNet(width=100), disk / "student.pth", {})
        assert (disk / "student.pth").read_bytes() == before
        assert [f.name for f in disk.iterdir()] == ["student.pth"]
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)  # torch may still hold the file that failed


def test_an_interruption_leaves_the_old_file(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = student.read_bytes()

    def interrupted(value: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save({}, student)
    assert student.read_bytes() == before
    assert [f.name for f in student.parent.iterdir()] == ["student.pth"]


def test_the_newest_checkpoint_is_the_one_of_the_highest_number(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    for name in ("epoch_9.pth", "epoch_10.pth", "epoch_11.pth.tmp", "best.pth", "student.pth", ".a.epoch_12.pth"):
        (tmp_path / name).touch()
    assert latest_checkpoint(tmp_path) == tmp_path / "epoch_10.pth"
