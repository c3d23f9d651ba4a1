"""The files of CIFAR-10 and CIFAR-100, as the authors publish them: pickled batches ("python") or binary ones."""

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kd_tasks.errors import UserError

PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Layout:
    """Where one edition of one CIFAR keeps its batches.

    Attributes:
        folder: as the archive unpacks.
        batches: files of each split.
        names: the file with the class names.
        label: of pickled batches, the key of the labels.
        names_key: of pickled batches, the key of the class names.
        label_bytes: of binary batches, bytes before the pixels; the last one is the label.
    """

    folder: str
    batches: dict[str, tuple[str, ...]]
    names: str
    label: str = ""
    names_key: str = ""
    label_bytes: int = 0


CIFAR10 = (
    Layout(
        "cifar-10-batches-py",
        {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
        names="batches.meta",
        label="labels",
        names_key="label_names",
    ),
    Layout(
        "cifar-10-batches-bin",
        {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
        names="batches.meta.txt",
        label_bytes=1,
    ),
)
CIFAR100 = (
    Layout(
        "cifar-100-python",
        {"train": ("train",), "test": ("test",)},
        names="meta",
        label="fine_labels",
        names_key="fine_label_names",
    ),
    Layout(
        "cifar-100-binary",
        {"train": ("train.bin",), "test": ("test.bin",)},
        names="fine_label_names.txt",
        label_bytes=2,
    ),
)


def find_layout(root: Path, layouts: tuple[Layout, ...]) -> tuple[Path, Layout]:
    """The folder below or at `root` that holds one of `layouts`, with the layout.

    Raises:
        UserError: if there is none.
    """
    for layout in layouts:
        for folder in (root / layout.folder, root):
            if (folder / layout.names).is_file():
                return folder, layout
    wanted = " or ".join(f"{layout.folder}/{layout.names}" for layout in layouts)
    raise UserError(f"{root}: there is no {wanted}. Unpack the archive of the data set here.")


def read_names(folder: Path, layout: Layout) -> list[str]:
    """The class names, in the order of the labels."""
    path = folder / layout.names
    if layout.label_bytes:
        return path.read_text(encoding="utf-8").split()
    return [str(name) for name in _entry(path, _unpickled(path), layout.names_key)]


def read_split(folder: Path, layout: Layout, split: str) -> tuple[np.ndarray, np.ndarray]:
    """All images of a split, uint8 (N, 32, 32, 3) RGB, and their labels, int64 (N,)."""
    parts = [read_batch(folder / name, layout) for name in layout.batches[split]]
    return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])


def read_batch(path: Path, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """One file: images uint8 (N, 32, 32, 3) RGB, labels int64 (N,).

    Raises:
        UserError: if the file is missing or not what `layout` says.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing. Unpack the archive again.")
    planes, labels = _binary(path, layout) if layout.label_bytes else _pickled(path, layout)
    return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels.astype(np.int64)


def _binary(path: Path, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    record = layout.label_bytes + PIXELS
    data = np.fromfile(path, dtype=np.uint8)
    if data.size == 0 or data.size % record:
        raise UserError(f"{path}: {data.size} bytes are not a whole number of records of {record} bytes.")
    records = data.reshape(-1, record)
    return records[:, layout.label_bytes :], records[:, layout.label_bytes - 1]


def _pickled(path: Path, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    batch = _unpickled(path)
    planes, labels = np.asarray(_entry(path, batch, "data")), np.asarray(_entry(path, batch, layout.label))
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.min(initial=0) < 0:
        raise UserError(f"{path}: {layout.label!r} is not a list of class numbers.")
    if planes.dtype != np.uint8 or planes.shape != (len(labels), PIXELS):
        raise UserError(
            f"{path}: 'data' is {planes.dtype} {planes.shape}; a batch with {len(labels)} labels has "
            f"uint8 ({len(labels)}, {PIXELS})."
        )
    return planes, labels


def _entry(path: Path, batch: Any, key: str) -> Any:
    if not isinstance(batch, dict) or key not in batch:
        raise UserError(f"{path}: there is no entry {key!r}; this is not a batch of the data set.")
    return batch[key]


def _unpickled(path: Path) -> Any:
    try:
        return ArraysOnly(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:
        raise UserError(f"{path}: not a readable batch ({error}). Unpack the archive again.") from error


class ArraysOnly(pickle.Unpickler):
    """Reads a pickle of numbers, texts, lists, dicts and NumPy arrays; a name of anything else is refused, not run."""

    def find_class(self, module: str, name: str) -> Any:
        """The few callables of which a pickled array consists."""
        if (module, name) == ("_codecs", "encode"):
            return _encode
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _empty_array
        if name == "_frombuffer" and module in ("numpy.core.numeric", "numpy._core.numeric"):
            return _array_of_bytes
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise UserError(f"it asks for {module}.{name}, which has no place in a batch of images; it was not loaded.")


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise UserError(f"it has bytes written as {encoding!r}, not as latin1; it was not loaded.")
    return text.encode("latin1")


def _empty_array(cls: type, shape: tuple[int, ...], dtype: bytes) -> np.ndarray:
    return np.ndarray.__new__(np.ndarray, (0,), dtype="u1")


def _array_of_bytes(data: bytes, dtype: np.dtype, shape: tuple[int, ...], order: Literal["C", "F"]) -> np.ndarray:
    return np.frombuffer(data, dtype=dtype).reshape(shape, order=order)
