"""Files that are written whole or not at all."""

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kd_tasks.errors import UserError

_CHUNK = 1 << 20
_NO_ROOM = 1 << 16
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary path in the folder of `path`, which takes the place of `path` when the block ends well.

    Missing folders are made. If the block fails, the temporary file is removed and `path` stays as it was. The
    temporary path ends like `path`, for writers that look at the suffix.

    Args:
        path: the file to write.

    Raises:
        UserError: if the disk is full or the folder cannot be written; says that nothing was half-written.
    """
    target = Path(path)
    temporary = target.with_name(f".{secrets.token_hex(4)}.{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        temporary.replace(target)
        _flush_folder(target.parent)
    except (OSError, RuntimeError) as error:
        if not _of_writing(error, temporary):
            raise
        raise _not_written(target, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as indented JSON with a final line break; not-a-number is refused with a `ValueError`."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    return write_text(path, text + "\n")


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` as UTF-8."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of the file's bytes, in hexadecimal."""
    found = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def digest(part: Any) -> str:
    """The SHA-256 of a part of a config, in hexadecimal: the same for the same values in any order of the keys."""
    text = json.dumps(part, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot flush a folder
            raise
    finally:
        os.close(handle)


def _of_writing(error: OSError | RuntimeError, temporary: Path) -> bool:
    """Whether the error comes from writing this file, and not from something else that the caller does meanwhile."""
    if isinstance(error, RuntimeError):  # torch.save reports a failed write in one of several ways
        return any(sign in str(error) for sign in ("PytorchStreamWriter", "inline_container", "iostream error"))
    places = {temporary, *temporary.parents}
    return _is_full(error) or (isinstance(error.filename, str | os.PathLike) and Path(error.filename) in places)


def _is_full(error: Exception) -> bool:
    return (isinstance(error, OSError) and error.errno in _FULL) or "No space left" in str(error)


def _not_written(path: Path, error: Exception) -> UserError:
    there = next(folder for folder in path.absolute().parents if folder.is_dir())
    full = _is_full(error) or shutil.disk_usage(there).free < _NO_ROOM
    fault = "the disk is full" if full else str(error)
    before = "the file of that name is as it was before" if path.exists() else "nothing was half-written"
    return UserError(f"{path}: could not be written: {fault}; {before}. Make room or choose another folder.")
