"""The one room for albumentations: transforms by name, seeded by sample, with errors that say what is wrong.

What this adapter puts right: albumentations ignores global seeds and repeats itself in every worker and epoch; its
`set_random_seed` gives all transforms equal streams, so that a flip and another transform with the same probability
always come together; a misspelt argument only warns; integer labels come back as floats; keypoints keep their names
when the image is mirrored; padding of masks is class 0; and its import calls home.
"""

import functools
import importlib
import inspect
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from mmengine.registry import TRANSFORMS

from kd_tasks.errors import UserError, nearest

Array = npt.NDArray[Any]

IGNORED = 255
COMPOSITIONS = ("OneOf", "RandomOrder", "Sequential", "SomeOf")

_MIRRORS = ("HorizontalFlip", "VerticalFlip", "Transpose")
_SYMMETRIES = ("D4", "SquareSymmetry")
_MIRRORED_ELEMENTS = ("h", "v", "t", "hvt")
_PREPROCESSING = ("FromFloat", "Normalize", "ToFloat", "ToTensorV2")
# bases; what is for volumes or sound; what needs a function; what gives other things than uint8 pixels
_UNUSABLE = (
    *("BasicTransform", "DualTransform", "ImageOnlyTransform", "CubicSymmetry", "FrequencyMasking", "TimeMasking"),
    *("TimeReverse", "Lambda", *_PREPROCESSING),
)
_DECLARED: dict[str, str] = {}


@functools.cache
def albumentations() -> ModuleType:
    """The module, imported on first use and without its call to the network."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    return importlib.import_module("albumentations")


def declare(name: str, reference: str) -> None:
    """Make a transform known without importing it: `declare('RandomScaleCrop', 'package.module:RandomScaleCrop')`.

    A class can also be registered with mmengine's `@TRANSFORMS.register_module()`; its module must then be imported.
    """
    _DECLARED[name] = reference


def transform_class(name: str, where: str = "transforms") -> type:
    """The transform or composition called `name`: a declared one, one in mmengine's `TRANSFORMS`, or albumentations'.

    Args:
        name: the class's name.
        where: the place in the config, for the error.

    Raises:
        UserError: if there is none; names the nearest.
    """
    if name in _DECLARED:
        module, _, attribute = _DECLARED[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    registered = TRANSFORMS.module_dict.get(name)
    if registered is not None:
        return registered
    stock = _stock()
    if name in stock:
        return stock[name]
    if name in _PREPROCESSING:
        raise UserError(
            f"{where}: leave {name!r} out: images stay uint8 here, and the model's preprocessor normalises."
        )
    known = [*_DECLARED, *TRANSFORMS.module_dict, *stock]
    raise UserError(f"{where}: {name!r} is not a known transform.{nearest(name, known)}")


def argument_names(name: str) -> tuple[str, ...]:
    """The arguments that the transform called `name` takes.

    Raises:
        UserError: if there is no such transform.
    """
    return tuple(inspect.signature(transform_class(name)).parameters)


class Augment:
    """Transforms applied to an image and everything that lies on it, with the same geometry.

    Args:
        transforms: `dict(type=name, **arguments)`, applied in order; `OneOf`, `SomeOf`, `RandomOrder` and
            `Sequential` hold further ones under `transforms`. What a mask gets where there is no image
            (`fill_mask`) is 255, ignored, unless given.
        keypoint_swaps: for K keypoints, the K indices that they get in a mirrored image: 0..K-1 with left and right
            exchanged. None if the keypoints have no sides.

    Raises:
        UserError: for an unknown transform or argument, or a value that the transform refuses.
    """

    def __init__(self, transforms: Sequence[Mapping[str, Any]], keypoint_swaps: Sequence[int] | None = None) -> None:
        self.transforms = [dict(t) if isinstance(t, Mapping) else t for t in transforms]
        self.keypoint_swaps = None if keypoint_swaps is None else np.asarray(keypoint_swaps, dtype=np.intp)
        if self.keypoint_swaps is not None:
            _check_swaps(self.keypoint_swaps)
        self._composed: dict[tuple[bool, bool], Any] = {}
        if self.transforms:
            self._compose(False, False)

    def __call__(
        self,
        image: Array,
        mask: Array | None = None,
        keypoints: Array | None = None,
        boxes: Array | None = None,
        labels: Array | None = None,
        seed: int = 0,
    ) -> dict[str, Array]:
        """Transform one sample.

        Args:
            image: (H, W, 3), uint8.
            mask: (H, W), integers.
            keypoints: (..., K, 2 or more): x and y in pixels, then what stays with the point, such as visibility.
                None is dropped: a point that leaves the image keeps its place in the array and lies outside.
            boxes: (N, 4) as x1, y1, x2, y2 in pixels. They are cut at the border; those without area are dropped.
            labels: (N,) of the boxes, of any type, or whatever else belongs to the image if there are no boxes.
            seed: of this sample; the result depends on nothing else.

        Returns:
            what was given, transformed, under the same names (boxes as float32); with boxes also `kept`, (M,), the
            indices of those that are left.

        Raises:
            UserError: if a transform cannot be applied, such as a crop larger than the image.
        """
        given = {"image": image, "mask": mask, "keypoints": keypoints, "boxes": boxes, "labels": labels}
        sample: dict[str, Array] = {name: value for name, value in given.items() if value is not None}
        if not self.transforms:
            if boxes is not None:
                sample.update(boxes=boxes.astype(np.float32), kept=np.arange(len(boxes)))
            return sample
        compose = self._compose(keypoints is not None, boxes is not None)
        compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        try:
            result = compose(**_to_albumentations(sample))
        except UserError:
            raise
        except Exception as error:  # what a third party's transform raises is not known
            height, width = image.shape[:2]
            raise UserError(f"transforms: cannot be applied to an image of {height}x{width}: {error}") from error
        return self._from_albumentations(result, sample)

    def _compose(self, keypoints: bool, boxes: bool) -> Any:
        key = (keypoints, boxes)
        if key not in self._composed:
            built = [build_transform(cfg, f"transforms[{place}]") for place, cfg in enumerate(self.transforms)]
            self._composed[key] = albumentations().Compose(
                built,
                keypoint_params={"format": "xy", "remove_invisible": False} if keypoints else None,
                bbox_params={
                    "format": "pascal_voc",
                    "label_fields": ["box_index"],
                    "clip": True,
                    "filter_invalid_bboxes": True,
                }
                if boxes
                else None,
                save_applied_params=keypoints and self.keypoint_swaps is not None,
            )
        return self._composed[key]

    def _from_albumentations(self, result: dict[str, Any], sample: dict[str, Array]) -> dict[str, Array]:
        out: dict[str, Array] = {name: result[name] for name in ("image", "mask") if name in sample}
        if "keypoints" in sample:
            out["keypoints"] = self._keypoints(result, sample["keypoints"])
        if "labels" in sample:
            out["labels"] = np.asarray(sample["labels"])
        if "boxes" in sample:
            kept = np.asarray(result["box_index"], dtype=np.float64).astype(np.int64)
            out["kept"] = kept
            out["boxes"] = np.asarray(result["bboxes"], dtype=np.float32).reshape(-1, 4)
            if "labels" in sample:
                out["labels"] = out["labels"][kept]
        return out

    def _keypoints(self, result: dict[str, Any], before: Array) -> Array:
        keypoints = np.array(before, dtype=np.result_type(before.dtype, np.float32))
        keypoints[..., :2] = np.asarray(result["keypoints"]).reshape((*before.shape[:-1], 2))
        if self.keypoint_swaps is None or not _is_mirrored(result["applied_transforms"]):
            return keypoints
        if before.shape[-2] != len(self.keypoint_swaps):
            raise UserError(
                f"keypoint_swaps names {len(self.keypoint_swaps)} points, but a sample has {before.shape[-2]}."
            )
        return keypoints[..., self.keypoint_swaps, :]


def build_transform(cfg: Mapping[str, Any], where: str = "transforms") -> Any:
    """The transform that `cfg` describes, with those that it holds.

    Args:
        cfg: `dict(type=name, **arguments)`.
        where: the place in the config, for errors.

    Raises:
        UserError: for an unknown transform or argument, or a value that the transform refuses.
    """
    if not isinstance(cfg, Mapping) or not isinstance(cfg.get("type"), str):
        raise UserError(f"{where}: a transform is written dict(type='Name', ...), not {cfg!r}.")
    arguments = {key: value for key, value in cfg.items() if key != "type"}
    name = cfg["type"]
    cls = transform_class(name, where)
    takes = inspect.signature(cls).parameters
    unknown = next((key for key in arguments if key not in takes), None)
    if unknown is not None:
        raise UserError(
            f"{where}.{unknown}: {name} takes no argument {unknown!r}.{nearest(unknown, takes)} "
            f"It takes: {', '.join(takes)}."
        )
    missing = [key for key, p in takes.items() if _is_required(p) and key not in arguments]
    if name in COMPOSITIONS:
        missing.clear()
        arguments["transforms"] = list(_build_all(arguments.get("transforms"), f"{where}.transforms"))
    if missing:
        raise UserError(f"{where}: {name} needs {' and '.join(repr(key) for key in missing)}.")
    if "fill_mask" in takes and takes["fill_mask"].default is not None:
        arguments.setdefault("fill_mask", IGNORED)
    return _constructed(cls, arguments, f"{where}: {name}")


def _build_all(cfgs: Any, where: str) -> Iterator[Any]:
    if not isinstance(cfgs, (list, tuple)) or not cfgs:
        raise UserError(f"{where}: needs a list of transforms.")
    for place, cfg in enumerate(cfgs):
        yield build_transform(cfg, f"{where}[{place}]")


def _is_required(parameter: inspect.Parameter) -> bool:
    positional = (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    return parameter.default is parameter.empty and parameter.kind in positional


def _constructed(cls: type, arguments: dict[str, Any], where: str) -> Any:
    options = {"strict": True} if _is_validated(cls) else {}
    try:
        return cls(**arguments, **options)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {_reasons(error)}") from error


def _is_validated(cls: type) -> bool:
    """Whether albumentations checks the arguments; without `strict` it may fall back to defaults with a warning."""
    initialise = cls.__dict__.get("__init__")
    if not cls.__module__.startswith("albumentations.") or initialise is None:
        return False
    return bool(initialise.__code__.co_flags & inspect.CO_VARKEYWORDS) and cls.__name__ not in COMPOSITIONS


def _reasons(error: Exception) -> str:
    lines = (line.strip().partition(" [type=")[0] for line in str(error).splitlines())
    return "; ".join(line for line in lines if line and "validation error" not in line and "pydantic.dev" not in line)


@functools.cache
def _stock() -> dict[str, type]:
    module = albumentations()
    usable = {
        name: cls
        for name, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, module.BasicTransform) and name not in _UNUSABLE and "3D" not in name
    }
    return {**usable, **{name: getattr(module, name) for name in COMPOSITIONS}}


def _to_albumentations(sample: dict[str, Array]) -> dict[str, Any]:
    data: dict[str, Any] = {name: sample[name] for name in ("image", "mask") if name in sample}
    if "keypoints" in sample:
        points = sample["keypoints"]
        data["keypoints"] = points[..., :2].reshape(-1, 2).astype(np.float32)
    if "boxes" in sample:
        data["bboxes"] = sample["boxes"].reshape(-1, 4).astype(np.float32)
        data["box_index"] = np.arange(len(data["bboxes"]))
    return data


def _is_mirrored(applied: list[tuple[str, dict[str, Any]]]) -> bool:
    """Whether an odd number of reflections was applied."""
    mirrors = sum(
        name in _MIRRORS or (name in _SYMMETRIES and params.get("group_element") in _MIRRORED_ELEMENTS)
        for name, params in applied
    )
    return mirrors % 2 == 1


def _check_swaps(swaps: Array) -> None:
    count = len(swaps)
    if sorted(swaps.tolist()) != list(range(count)) or not np.array_equal(swaps[swaps], np.arange(count)):
        raise UserError(
            f"keypoint_swaps: {swaps.tolist()} must hold each of 0 to {count - 1} once, and exchange points in pairs."
        )
