"""Predictions in files, whoever wrote them, by the scorer that a plugin has for their format."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_tasks import plugins
from kd_tasks.engine.evaluate import EvaluationResult
from kd_tasks.errors import UserError, nearest


def score_predictions(
    name: str, predictions: str | Path, annotations: str | Path, options: Mapping[str, Any] | None = None
) -> EvaluationResult:
    """The metrics of a file or folder of predictions.

    Args:
        name: of the format, one of a plugin's `scorers`.
        predictions: file or folder.
        annotations: file or folder that the scorer compares them with.
        options: of the scorer, by name.

    Raises:
        UserError: if there is no such format, file or option, or a file has a fault.
    """
    scorer = plugins.scorer(name)
    _, _, *known = inspect.signature(scorer).parameters.values()
    check_options(name, options or {}, {parameter.name: parameter.default for parameter in known})
    for path, what in ((predictions, "predictions"), (annotations, "annotations")):
        if not Path(path).exists():
            raise UserError(f"{path}: there is no such file or folder of {what}.")
    result: EvaluationResult = scorer(Path(predictions), Path(annotations), **(options or {}))
    return result


def check_options(name: str, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Look whether a scorer takes `options`.

    Args:
        name: of the scorer.
        options: as given.
        defaults: of all its options, whose kind a value must have; None takes any.

    Raises:
        UserError: for an unknown option, or a value of another kind.
    """
    for option, value in options.items():
        if option not in defaults:
            known = ", ".join(f"{key}={default}" for key, default in defaults.items()) or "none"
            raise UserError(f"{name} has no option {option!r}.{nearest(option, defaults)} Its options: {known}.")
        default = defaults[option]
        if default is not None and not is_alike(value, default):
            raise UserError(f"{name}: {option} is {value!r}; give something like {default!r}.")


def is_alike(value: Any, default: Any) -> bool:
    """Whether `value` is of the kind of `default`: a whole number is a float, too; a tuple is one of numbers."""
    if isinstance(default, tuple):
        return isinstance(value, list | tuple) and all(isinstance(part, int | float) for part in value)
    return isinstance(value, int | float if isinstance(default, float) else type(default))
