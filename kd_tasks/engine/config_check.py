"""The check of a whole config before anything is built or read.

mmengine trains on with a misspelt key, and says `TypeError: None is not a callable object` for a misspelt optimiser.
Here every key of a config is held against what reads it (`config_places`), and the parts against each other. All
faults are reported at once, each with its path and the nearest name.
"""

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.optim import DefaultOptimWrapperConstructor

from kd_tasks import paths, plugins
from kd_tasks.engine.config import given_options, option_paths, read_config
from kd_tasks.engine.config_places import (
    CRITIC,
    DATA_LOADERS,
    DATASET,
    LOSS,
    MODEL,
    STUDENT,
    TOP_LEVEL,
)
from kd_tasks.engine.config_schema import Report, check_places, inside
from kd_tasks.engine.evaluate import build_metrics
from kd_tasks.errors import UserError, nearest
from kd_tasks.losses.base import AdversarialLoss
from kd_tasks.transfer import named_taps

Values = Mapping[str, Any]


def check_config(cfg: Config, options: Values | None = None) -> None:
    """Hold every key of `cfg` against what reads it.

    Args:
        cfg: a config, with `options` applied.
        options: what `--cfg-options` set, by dotted path; by default what `load_config` was given.

    Raises:
        UserError: with all faults, one a line.
    """
    faults = find_faults(cfg, options)
    if not faults:
        return
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    raise UserError("\n".join([f"{cfg.filename or 'the config'} has {count}:", *(f"  {fault}" for fault in faults)]))


def find_faults(cfg: Config, options: Values | None = None, files: bool = True) -> list[str]:
    """All faults of `cfg`, as `path: what is wrong`; an empty list for a clean config.

    Args:
        cfg: a config, with `options` applied.
        options: what `--cfg-options` set, by dotted path; by default what `load_config` was given.
        files: whether data folders and checkpoints must exist.
    """
    plugins.load_all()
    report = Report()
    values = {key: value for key, value in cfg.to_dict().items() if not key.startswith("_")}
    check_keys(values, report)
    for rule in (*RULES, *(FILE_RULES if files else ())):
        rule(values, report)
    check_options(cfg, given_options(cfg) if options is None else options, report)
    return report.faults


def check_keys(values: Values, report: Report) -> None:
    """Each key of the config and everything inside it, one by one."""
    report.declared.add("")
    known = TOP_LEVEL.arguments().required
    for key in (k for k in values if k not in known):
        hint = nearest(key, known) or f" A helper variable's name begins with an underscore: _{key}."
        report.add(key, f"no part of the run reads this key.{hint}")
    if "model" not in values:
        report.add("model", "a config needs a model.")
    if values.get("train_cfg") is not None and not values.get("work_dir"):
        report.add("work_dir", "a training needs a folder for what it writes, such as 'work_dirs/my_run'.")
    check_places(values, TOP_LEVEL.places, "", report)


# --- The parts against each other ------------------------------------------------------------------------------------

# What must be there if anything of a line is there, and what may.
COMPANIONS = (
    (("train_dataloader", "train_cfg", "optim_wrapper"), ()),
    (("val_dataloader", "val_evaluator"), ("val_cfg",)),
    (("test_dataloader", "test_evaluator"), ("test_cfg",)),
)
DECAY_FACTORS = ("bias_decay_mult", "norm_decay_mult", "dwconv_decay_mult")


def missing_companions(values: Values, report: Report) -> None:
    """Loader, loop and what it works with go together."""
    for needed, further in COMPANIONS:
        there = [key for key in (*needed, *further) if values.get(key) is not None]
        for key in needed if there else ():
            if key not in there:
                report.add(key, f"it is missing beside {' and '.join(map(repr, there))}.")


def training_length(values: Values, report: Report) -> None:
    """A training is counted in epochs or in iterations."""
    cfg = _mapping(values.get("train_cfg"))
    if "max_epochs" in cfg and "max_iters" in cfg:
        report.add(
            "train_cfg", "give max_epochs (with by_epoch=True) or max_iters (with by_epoch=False), not both of them."
        )
    if "type" in cfg and "by_epoch" in cfg:
        report.add("train_cfg.by_epoch", f"the loop {cfg['type']!r} is named by 'type' already; leave one of them out.")


# What is counted, with the least number that makes sense.
COUNTS = {
    "train_cfg.max_epochs": 1,
    "train_cfg.max_iters": 1,
    "train_cfg.val_interval": 1,
    **{f"{loader}.batch_size": 1 for loader in DATA_LOADERS},
    **{f"{loader}.num_workers": 0 for loader in DATA_LOADERS},
}


def counts(values: Values, report: Report) -> None:
    """Lengths, intervals and batches are whole numbers."""
    for path, least in COUNTS.items():
        value = _at(values, path)
        if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= least):
            continue
        report.add(path, f"a whole number from {least} on belongs here, not {value!r}.")


def decay_without_base(values: Values, report: Report) -> None:
    """Factors of the weight decay need a weight decay to begin with."""
    for path in ("optim_wrapper", f"optim_wrapper.{CRITIC}"):
        wrapper = _mapping(_at(values, path))
        constructor = wrapper.get("constructor", DefaultOptimWrapperConstructor.__name__)
        paramwise, optimizer = _mapping(wrapper.get("paramwise_cfg")), _mapping(wrapper.get("optimizer"))
        custom = [_mapping(entry) for entry in _mapping(paramwise.get("custom_keys")).values()]
        factors = [key for key in DECAY_FACTORS if key in paramwise]
        factors += ["custom_keys"] if any("decay_mult" in entry for entry in custom) else []
        if constructor != DefaultOptimWrapperConstructor.__name__ or "weight_decay" in optimizer or not factors:
            continue
        report.add(f"{path}.paramwise_cfg.{factors[0]}", f"it multiplies {path}.optimizer.weight_decay; give that too.")


def teachers(values: Values, report: Report) -> None:
    """One teacher or several, and none that a transfer names in vain."""
    model = _mapping(values.get("model"))
    if model.get("teacher") is not None and model.get("teachers") is not None:
        report.add("model.teachers", "there is 'model.teacher' too; give one of them.")
    for name, transfer in _transfers(values).items():
        _check_teacher_tap(transfer, model, f"model.transfers.{name}", report)


def _check_teacher_tap(transfer: Values, model: Values, path: str, report: Report) -> None:
    key = next((k for k in ("on", "teacher") if transfer.get(k) is not None), None)
    if key is None:
        return
    several = _mapping(model.get("teachers"))
    if not several:
        if model.get("teacher") is None:
            report.add(
                inside(path, key),
                "the model has no teacher. Give 'model.teacher', or name the student's own tap by 'target'.",
            )
        return
    taps = [transfer[key]] if isinstance(transfer[key], str) else transfer[key]
    for tap in taps if isinstance(taps, list | tuple) else ():
        first = str(tap).partition(".")[0]
        if first not in several:
            report.add(
                inside(path, key),
                f"{tap!r} begins with no teacher's name.{nearest(first, several)} Write {next(iter(several))}.{tap}; "
                f"teachers: {', '.join(several)}.",
            )


def methods(values: Values, report: Report) -> None:
    """What a method asks of its own options and of the training, by its `refuse_unfit`."""
    model = _mapping(values.get("model"))
    refuse = getattr(MODEL.type_of(model), "refuse_unfit", None)
    if refuse is None:
        return
    try:
        refuse(model, _mapping(values.get("train_cfg")))
    except UserError as error:
        report.quote(str(error))


def evaluators(values: Values, report: Report) -> None:
    """Metrics take their options, which would otherwise show after the training only."""
    for key in ("val_evaluator", "test_evaluator"):
        if values.get(key) is None or report.below(key):
            continue
        try:
            build_metrics(values[key])
        except UserError as error:
            report.add(key, str(error))


def taps(values: Values, report: Report) -> None:
    """Each transfer has a tap on both sides, named once."""
    for name, transfer in _transfers(values).items():
        try:
            on, student, teacher, target = (transfer.get(key) for key in ("on", "student", "teacher", "target"))
            reads_teacher = getattr(_loss_class(transfer.get("loss")), "reads_teacher", True)
            named_taps(on, student, teacher, target, reads_teacher)
        except (ValueError, TypeError) as error:
            report.add(f"model.transfers.{name}", str(error))


def critics(values: Values, report: Report) -> None:
    """An adversarial transfer has a critic, and the critic an optimiser."""
    adversarial = [name for name, transfer in _transfers(values).items() if _is_adversarial(transfer.get("loss"))]
    optim = _mapping(values.get("optim_wrapper"))
    if adversarial and optim and CRITIC not in optim:
        example = "optim_wrapper.critic=dict(optimizer=dict(type='Adam', lr=1e-4))"
        report.add(
            f"optim_wrapper.{CRITIC}", f"the critic of the transfer {adversarial[0]!r} needs an optimizer: {example}."
        )
    if CRITIC in optim and not adversarial:
        report.add(f"optim_wrapper.{CRITIC}", "no transfer has a critic; leave this key out.")
    _check_schedulers(values, CRITIC in optim, report)


def _check_schedulers(values: Values, has_critic: bool, report: Report) -> None:
    schedulers = _mapping(values.get("param_scheduler"))
    named = schedulers.keys() & {STUDENT, CRITIC}
    if named and not has_critic:
        report.add("param_scheduler", "schedulers by optimizer belong to a run with optim_wrapper.critic; give a list.")
    elif named and len(named) < 2:
        missing = {STUDENT, CRITIC} - named
        report.add("param_scheduler", f"{missing.pop()!r} is missing; it may be an empty list.")


def _is_adversarial(loss: Any) -> bool:
    target = _loss_class(loss)
    return inspect.isclass(target) and issubclass(target, AdversarialLoss)


def _loss_class(loss: Any) -> Any:
    return LOSS.type_of(loss) if isinstance(loss, Mapping) else None


def _transfers(values: Values) -> dict[str, Values]:
    entries = _mapping(_mapping(values.get("model")).get("transfers"))
    return {name: entry for name, entry in entries.items() if isinstance(entry, Mapping)}


def _mapping(value: Any) -> Values:
    return value if isinstance(value, Mapping) else {}


def _at(values: Any, path: str) -> Any:
    for key in path.split("."):
        values = _mapping(values).get(key)
    return values


RULES = (
    missing_companions,
    training_length,
    counts,
    decay_without_base,
    teachers,
    methods,
    evaluators,
    taps,
    critics,
)

# --- Files -----------------------------------------------------------------------------------------------------------


def missing_checkpoints(values: Values, report: Report) -> None:
    """Weights that are to be loaded exist."""
    wanted = [*_entries(values.get("model"), "checkpoint", "model"), ("load_from", values.get("load_from"))]
    for path, file in wanted:
        if not isinstance(file, str) or "://" in file or Path(file).exists():
            continue
        report.add(path, f"{file!r} does not exist. {_how_to_train(file)}, or give another file here.")


def _how_to_train(file: str) -> str:
    run = Path(file).parent.name
    config = next((name for name in paths.config_names() if Path(name).name == run), None)
    return f"'kd-tasks train {config}' makes it" if config else "Train it first"


def missing_data(values: Values, report: Report) -> None:
    """The folders of the data sets exist; a folder that several loaders want is named once."""
    wanted: dict[tuple[str, str], list[str]] = {}
    for loader in DATA_LOADERS:
        for path, dataset in _datasets(_at(values, f"{loader}.dataset"), f"{loader}.dataset"):
            root = _root_of(dataset)
            if root is not None and not paths.data_root(root).is_dir():
                wanted.setdefault((root, str(dataset.get("type"))), []).append(f"{path}.data_root")
    for (root, name), places in wanted.items():
        report.add(", ".join(places), f"the folder {root!r} does not exist. {_how_to_get(root, name)}")


def _datasets(value: Any, path: str) -> Iterator[tuple[str, Values]]:
    if not isinstance(value, Mapping):
        return
    yield path, value
    yield from _datasets(value.get("dataset"), f"{path}.dataset")
    inner = value.get("datasets")
    for index, entry in enumerate(inner if isinstance(inner, list | tuple) else ()):
        yield from _datasets(entry, f"{path}.datasets.{index}")


def _root_of(dataset: Values) -> str | None:
    root = dataset.get("data_root")
    target = DATASET.type_of(dataset)
    if root is None and inspect.isclass(target):
        parameter = inspect.signature(target).parameters.get("data_root")
        root = parameter.default if parameter is not None else None
    return str(root) if isinstance(root, str | Path) else None


def _how_to_get(root: str, dataset: str) -> str:
    cards = {card for plugin in plugins.discover() for card in plugin.datasets}
    twins = {twin for plugin in plugins.discover() for twin in plugin.twins}
    names = [name.lower().replace("_", "") for name in (dataset, Path(root).name)]
    card = next((card for name in names for card in cards if card.replace("_", "") == name), None)
    twin = next((twin for name in names for twin in twins if twin.replace("_", "") == name), None)
    ways = (
        [f"The card of {card!r} ({paths.shipped('datasets').name}/{card}.md) says where to get the data."]
        if card
        else []
    )
    ways += [_how_to_write(twin, Path(root))] if twin else []
    return " ".join([*ways, "The environment variable KD_TASKS_DATA may name a folder in place of 'datasets'."])


def _how_to_write(twin: str, root: Path) -> str:
    """The command for a twin; one of several data sets lies in a folder that is named after their twin."""
    whole = next((folder for folder in root.parents if folder.name == f"{twin}_twin"), root)
    return f"'kd-tasks data synth {twin} {whole}' writes a small synthetic twin there."


def _entries(value: Any, key: str, path: str) -> Iterator[tuple[str, Any]]:
    """Every value at `key` in nested dicts, with its path."""
    for name, entry in _mapping(value).items():
        if name == key:
            yield inside(path, name), entry
        else:
            yield from _entries(entry, key, inside(path, name))


FILE_RULES = (missing_checkpoints, missing_data)

# --- Options ---------------------------------------------------------------------------------------------------------


def check_options(cfg: Config, options: Values, report: Report) -> None:
    """Options change what is in the config, or give arguments that something takes.

    A key that an option adds where the keys are not known beforehand (a transfer's name, a dict that is handed on as
    it is) is most likely misspelt.
    """
    if not options or not cfg.filename or not Path(cfg.filename).is_file():
        return
    plain = read_config(cfg.filename).to_dict()
    for path in option_paths(options):
        if path.startswith("_"):
            report.add(path, "--cfg-options comes too late for a helper variable; set the keys that it goes into.")
            continue
        added = _first_addition(plain, path)
        if added is None:
            continue
        parent, key, siblings = added
        where = inside(parent, key)
        if parent in report.chosen and report.below(where):
            report.add(where, f"--cfg-options adds this entry, and it is not complete.{nearest(key, siblings)}")
        elif parent not in report.declared | report.chosen:
            report.add(where, f"--cfg-options adds this key, which nothing reads.{nearest(key, siblings)}")


def _first_addition(values: Any, path: str) -> tuple[str, str, list[str]] | None:
    """Where `path` leaves what is there: the path of the last dict, the key that it lacks, and the keys that it has."""
    parent = ""
    for key in path.split("."):
        if isinstance(values, list | tuple):
            values = values[int(key)]
        elif isinstance(values, Mapping) and key in values:
            values = values[key]
        else:
            return parent, key, list(_mapping(values))
        parent = inside(parent, key)
    return None
