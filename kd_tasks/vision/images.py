"""Images and label maps on disk: read whole or refused by name, written whole or not at all."""

import io
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from kd_tasks.errors import UserError

Array = npt.NDArray[Any]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_JPEG = b"\xff\xd8"
_JPEG_SCAN = b"\xff\xda"
_JPEG_END = b"\xff\xd9"
_GREY_STEP = {2: 85, 4: 17}  # readers stretch grey values of 2 and 4 bits to 0..255


def read_image(path: str | Path) -> Array:
    """An image as uint8 RGB (H, W, 3).

    Grey images get three equal channels, transparency is dropped, 16 bits become 8. The orientation of EXIF is
    ignored: pixels stay as they are stored, as the labels that belong to them were drawn.

    Raises:
        UserError: if the file is missing, truncated, or not an image.
    """
    data = _whole(path)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise _corrupt(path)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def read_labels(path: str | Path) -> Array:
    """A label map (H, W), uint8 or uint16: the numbers that are stored, of palette images the indices.

    Raises:
        UserError: if the file is missing, truncated, not an image, or holds colours instead of numbers.
    """
    data = _whole(path)
    try:
        with Image.open(io.BytesIO(data)) as image:
            mode = image.mode
            labels = np.array(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise _corrupt(path) from error
    if labels.ndim != 2:
        raise UserError(
            f"{path}: holds colours (mode {mode}), but a label map has one number a pixel. Convert it, or read it by "
            "its palette with ImageMaskFolder(colour_masks=True)."
        )
    if labels.dtype == np.bool_:
        return labels.astype(np.uint8)
    if mode == "L":
        return labels // _GREY_STEP.get(_png_grey_bits(data), 1)
    return labels if labels.dtype == np.uint8 else labels.astype(np.uint16)


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width from the header, with the end of the file looked at, but no pixel decoded.

    Raises:
        UserError: if the file is missing, truncated, or not an image.
    """
    data = _whole(path)
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.height, image.width
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise _corrupt(path) from error


def write_image(path: str | Path, image: Array, quality: int = 95) -> None:
    """Write uint8 RGB (H, W, 3), or grey (H, W) of 8 or 16 bits, in the format of the suffix.

    Args:
        path: the file; missing folders are made.
        image: the pixels.
        quality: of JPEG, 0 to 100.
    """
    suffix = Path(path).suffix.lower()
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix in (".jpg", ".jpeg") else []
    if suffix not in IMAGE_SUFFIXES:
        raise UserError(f"{path}: {suffix!r} is no image format; use one of {', '.join(IMAGE_SUFFIXES)}.")
    write_bytes(path, cv2.imencode(suffix, pixels, options)[1].tobytes())


def write_labels(path: str | Path, labels: Array, palette: Sequence[Sequence[int]] | None = None) -> None:
    """Write a label map (H, W) as PNG; with a palette of RGB colours, uint8 labels can be seen in any viewer."""
    if palette is None:
        write_image(path, labels)
        return
    picture = Image.fromarray(labels, mode="P")
    picture.putpalette([value for colour in palette for value in colour])
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file so that a reader sees it whole or not at all. It is not flushed to the disk one by one."""
    target = Path(path)
    temporary = target.with_name(f".{secrets.token_hex(4)}.{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(target)
    except OSError as error:
        raise UserError(f"{path}: could not be written: {error}. Make room or choose another folder.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _whole(path: str | Path) -> bytes:
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}.") from error
    if not data:
        raise UserError(f"{path}: the file is empty. Copy or unpack it again.")
    if _is_truncated(data):
        raise UserError(f"{path}: the image is truncated: its end is missing. Copy or unpack it again.")
    return data


def _is_truncated(data: bytes) -> bool:
    """Whether the end mark of a PNG or JPEG is missing; OpenCV may fill the rest with grey and say nothing."""
    if data.startswith(_PNG):
        return data.rfind(_PNG_END) < 0
    if data.startswith(_JPEG):
        return data.find(_JPEG_END, _jpeg_pixels(data)) < 0
    return False


def _jpeg_pixels(data: bytes) -> int:
    """Where the pixels begin: behind the segments, in which a thumbnail has an end mark of its own."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place : place + 2] != _JPEG_SCAN:
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return place


def _png_grey_bits(data: bytes) -> int:
    is_grey_png = data.startswith(_PNG) and data[25] == 0
    return data[24] if is_grey_png else 8


def _corrupt(path: str | Path) -> UserError:
    return UserError(f"{path}: is not an image that can be read, or it is corrupt. Copy or unpack it again.")
