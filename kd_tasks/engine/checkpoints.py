"""Checkpoints: plain data, written whole or not at all, read without running code."""

import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kd_tasks import __version__
from kd_tasks.engine.files import atomic_write
from kd_tasks.errors import UserError

STUDENT_FILE = "student.pth"
NETWORK_PREFIX = "network."
LISTED = 2


def save(value: Mapping[str, Any], path: str | Path) -> None:
    """Write `value`, made plain, to `path`: all of it or nothing."""
    with atomic_write(path) as temporary:
        torch.save(plain(value), temporary)


def read_checkpoint(path: str | Path, where: str = "checkpoint") -> dict[str, Any]:
    """What a checkpoint file holds, on the CPU. A run folder stands for its `student.pth`.

    Raises:
        UserError: if the file is missing, damaged, no checkpoint, or would run code when loaded.
    """
    file = Path(path)
    if file.is_dir():
        file = file / STUDENT_FILE
    if not file.is_file():
        raise UserError(f"{where}: {file} does not exist. Train it first, or correct the path.")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the bytes of a stranger's file make the reader say
        name = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if name is None:
            raise UserError(f"{where}: {file} cannot be read; it is damaged or no checkpoint. Get it anew.") from error
        raise UserError(
            f"{where}: {file} is refused, since loading it could run code: it asks for {name[1]!r}. "
            "Save the state dict alone."
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(f"{where}: {file} holds a {type(content).__name__}, not a checkpoint.")
    return dict(content)


def network_state(checkpoint: Mapping[str, Any], network: nn.Module) -> dict[str, Tensor]:
    """The weights of `network` out of a `student.pth`, a run's checkpoint or a plain state dict."""
    state = checkpoint.get("state_dict", checkpoint)
    if not isinstance(state, Mapping):
        return {}
    state = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}
    own = network.state_dict().keys()
    if not own & state.keys():
        state = {key.removeprefix("module."): value for key, value in state.items()}
    of_run = {k.removeprefix(NETWORK_PREFIX): v for k, v in state.items() if k.startswith(NETWORK_PREFIX)}
    return of_run if of_run and len(own & of_run.keys()) >= len(own & state.keys()) else state


def load_network(network: nn.Module, path: str | Path, where: str = "checkpoint") -> dict[str, Any]:
    """Load a network's weights, every one of them; returns the checkpoint's meta information.

    Raises:
        UserError: if the file cannot be read, or holds the weights of another architecture.
    """
    checkpoint = read_checkpoint(path, where)
    state, own = network_state(checkpoint, network), network.state_dict()
    faults = (
        [
            f"{key} is {tuple(state[key].shape)} in the file and {tuple(own[key].shape)} in the network"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ],
        [f"{key} is missing" for key in own if key not in state],
        [f"{key} is not in the network" for key in state if key not in own],
    )
    if any(faults):
        listed = [fault for group in faults for fault in group[:LISTED]]
        more = sum(map(len, faults)) - len(listed)
        raise UserError(
            f"{where}: {path} holds the weights of another architecture than {type(network).__name__} as configured: "
            f"{'; '.join(listed)}{f' and {more} more' if more else ''}."
        )
    network.load_state_dict(state)
    return dict(checkpoint.get("meta", {}))


def save_student(network: nn.Module, path: str | Path, meta: Mapping[str, Any]) -> None:
    """Write the network alone, as export and any plain PyTorch program take it."""
    state = OrderedDict((key, value.detach().cpu().contiguous()) for key, value in network.state_dict().items())
    save({"state_dict": state, "meta": {**meta, "kd_tasks": __version__}}, path)


def class_names(meta: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes in the order of the logits, out of a checkpoint's meta information; empty where it has none."""
    dataset = meta.get("dataset")
    found = meta.get("classes") or (dataset.get("classes") if isinstance(dataset, Mapping) else None)
    return tuple(str(name) for name in found) if isinstance(found, list | tuple) else ()


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The newest `epoch_N.pth` or `iter_N.pth` of a run folder, by the iteration that it was written in."""
    found = [(int(m[1]), f) for f in Path(folder).glob("*.pth") if (m := re.fullmatch(r"(?:epoch|iter)_(\d+)", f.stem))]
    return max(found)[1] if found else None


def plain(value: Any) -> Any:
    """`value` out of nothing but tensors, numbers, strings, lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        kind = OrderedDict if isinstance(value, OrderedDict) else dict
        return kind((plain(k), plain(v)) for k, v in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        parts = [plain(v) for v in value]
        return type(value)(parts) if type(value) in (tuple, set) else parts
    simple: Any
    for simple in (str, bytes, bool, int, float):
        if isinstance(value, simple):
            return value if type(value) is simple else simple(value)
    return None if value is None else str(value)
