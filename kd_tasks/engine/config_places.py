"""What stands where in a config: one entry a place, in the order in which a config is read.

The entries are made of the parts in `config_schema`. What a place takes is read off the class that takes it, so that
an argument is named in one place of the project only.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.model import ExponentialMovingAverage, MomentumAnnealingEMA, StochasticWeightAverage
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    FUNCTIONS,
    HOOKS,
    LOG_PROCESSORS,
    LOOPS,
    METRICS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    VISBACKENDS,
    VISUALIZERS,
    Registry,
)
from mmengine.utils import import_modules_from_strings
from mmengine.utils.dl_utils import set_multi_processing
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.utils.data import DataLoader

from kd_tasks.connectors import SHORT_NAMES
from kd_tasks.engine.compat import DistillDataParallel
from kd_tasks.engine.config_schema import (
    ByName,
    Depending,
    Free,
    Keys,
    Name,
    OfKind,
    OneOf,
    Part,
    Place,
    Places,
    Reading,
    Registered,
    Report,
    Several,
    arguments_of,
    check_arguments,
    inside,
    known_source,
    plugin_names,
)
from kd_tasks.engine.runner import OWN_HOOKS, DistillRunner
from kd_tasks.errors import UserError
from kd_tasks.inference import Preparation
from kd_tasks.methods.adaptive_aggregation import RISKS
from kd_tasks.registry import (
    CODECS,
    CONNECTORS,
    CRITERIA,
    CRITICS,
    DECODERS,
    LOSSES,
    NETWORKS,
    PREPROCESSORS,
    TASK_MODELS,
    Kind,
)
from kd_tasks.schedules import Moment, Weight
from kd_tasks.teachers import MODES, FrozenTeacher
from kd_tasks.transfer import Transfer
from kd_tasks.vision.augment import build_transform, transform_class

FREE = Free()
STUDENT, CRITIC = "student", "critic"
DATA_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")

# --- The model -------------------------------------------------------------------------------------------------------


def _of_kind(kind: Kind) -> OfKind:
    return known_source(OfKind(kind))


def _if_dict(place: Place) -> Place:
    return Depending(lambda value: place if isinstance(value, Mapping) else FREE)


def _beside_network() -> Places:
    """Keys of a teacher beside its network's own."""
    own = arguments_of(FrozenTeacher).without(("network", "name"))
    return {**dict.fromkeys(own.required), "prepare": PREPARATION, "mode": TEACHER_MODE}


PREPARATION = Keys("prepare", (Preparation,))
TEACHER_MODE = OneOf(lambda: MODES, "mode of a teacher")
SHORT_CONNECTOR = OneOf(lambda: SHORT_NAMES, "connector")
WEIGHT = Reading(Weight, Keys("a weight", (Weight._read,), given=("self", "where")))
MOMENT = Reading(lambda value, path: value is None or Moment.parse(value, path))

# What stands at arguments of these names in any building block of a model.
WITHIN: dict[str, Place | None] = {}
NETWORK = Part(_of_kind(NETWORKS), WITHIN)
TEACHER = Part(NETWORK.source, WITHIN, beside=_beside_network)
CRITERION = Part(_of_kind(CRITERIA), WITHIN)
DECODER = Part(_of_kind(DECODERS), WITHIN)
PREPROCESSOR = Part(_of_kind(PREPROCESSORS), WITHIN)
LOSS = Part(_of_kind(LOSSES), WITHIN)
CONNECTOR = Part(_of_kind(CONNECTORS), WITHIN, short=SHORT_CONNECTOR)
CODEC = Part(_of_kind(CODECS), WITHIN)
WITHIN |= {
    "network": _if_dict(NETWORK),
    "student": _if_dict(NETWORK),
    "partner": _if_dict(NETWORK),
    "criterion": _if_dict(CRITERION),
    "decoder": _if_dict(DECODER),
    "loss": _if_dict(LOSS),
    "critic": _if_dict(Part(_of_kind(CRITICS), WITHIN)),
    "connector": _if_dict(CONNECTOR),
    "codec": _if_dict(CODEC),
}

TRANSFER = Keys(
    "a transfer",
    reads=(Transfer,),
    places={
        "loss": LOSS,
        "connector": CONNECTOR,
        "teacher_connector": CONNECTOR,
        "weight": WEIGHT,
        "begin": MOMENT,
        "end": MOMENT,
    },
    given=("name",),
    none=False,
)
MODEL = Part(
    _of_kind(TASK_MODELS),
    {
        "network": NETWORK,
        "student": NETWORK,
        "partner": NETWORK,
        "scorer": NETWORK,
        "teacher": TEACHER,
        "teachers": ByName("teachers", TEACHER),
        "transfers": ByName("transfers", TRANSFER),
        "criterion": CRITERION,
        "codec": CODEC,
        "decoder": DECODER,
        "data_preprocessor": PREPROCESSOR,
        "task_weight": WEIGHT,
        "risk": Part(CRITERION.source, WITHIN, short=OneOf(lambda: RISKS, "risk")),
    },
)

# --- The data --------------------------------------------------------------------------------------------------------


def _registered(registry: Registry, noun: str) -> Registered:
    return known_source(Registered(registry, noun))


class _Transform:
    """A transform of albumentations or of the project: names first, then the values, which the transform checks."""

    def check(self, value: Any, path: str, report: Report) -> None:
        try:
            if isinstance(value, Mapping) and isinstance(value.get("type"), str):
                self._check_names(value, transform_class(value["type"], inside(path, "type")), path, report)
            if not report.below(path):
                build_transform(value, path)
        except UserError as error:
            report.quote(str(error))

    def _check_names(self, value: Mapping[str, Any], cls: type, path: str, report: Report) -> None:
        given = {key: entry for key, entry in value.items() if key != "type"}
        check_arguments(given, arguments_of(cls), cls.__name__, path, report)
        if isinstance(value.get("transforms"), list | tuple):
            Several(self).check(value["transforms"], inside(path, "transforms"), report)


FUNCTION = Part(_registered(FUNCTIONS, "function"), given_first=True)
DATASET = Part(_registered(DATASETS, "data set"))
DATASET.places.update(transforms=Several(_Transform()), dataset=DATASET, datasets=Several(DATASET))
SAMPLER = Part(_registered(DATA_SAMPLERS, "sampler"), given=("dataset", "seed"))
LOADER = Keys(
    "a data loader",
    reads=(DataLoader,),
    places={
        "dataset": DATASET,
        "sampler": SAMPLER,
        "batch_sampler": Part(SAMPLER.source, given=("sampler", "batch_size")),
        "collate_fn": FUNCTION,
        "worker_init_fn": FUNCTION,
        "num_batch_per_epoch": None,
    },
)

# --- The optimisation ------------------------------------------------------------------------------------------------

OPTIMIZER = Part(_registered(OPTIMIZERS, "optimizer"), given_first=True)
CUSTOM_KEY = Keys(
    "a custom key", (torch.optim.SGD, torch.optim.AdamW), dict.fromkeys(("lr_mult", "decay_mult")), given=("params",)
)
PARAMWISE = Keys(
    "paramwise_cfg",
    places={
        "custom_keys": ByName("custom_keys", CUSTOM_KEY),
        "bias_lr_mult": None,
        "bias_decay_mult": None,
        "norm_decay_mult": None,
        "dwconv_decay_mult": None,
        "flat_decay_mult": None,
        "dcn_offset_lr_mult": None,
        "bypass_duplicate": None,
    },
)
CLIPPINGS = {
    name: Keys("clip_grad", (clip,), {"type": OneOf(lambda: ("norm", "value"), "way to clip")}, ("parameters",))
    for name, clip in (("norm", clip_grad_norm_), ("value", clip_grad_value_))
}
CLIP = Depending(lambda value: CLIPPINGS["value" if isinstance(value, Mapping) and "clip_value" in value else "norm"])
CONSTRUCTOR = Name(_registered(OPTIM_WRAPPER_CONSTRUCTORS, "optimizer constructor"))
WRAPPER = _registered(OPTIM_WRAPPERS, "optimizer wrapper")
OPTIMISATION: dict[str, Place | None] = {"optimizer": OPTIMIZER, "clip_grad": CLIP}
BESIDE_WRAPPER: Places = {"constructor": CONSTRUCTOR, "paramwise_cfg": PARAMWISE}
CRITIC_OPTIM = Part(WRAPPER, OPTIMISATION, BESIDE_WRAPPER, default="OptimWrapper")
OPTIM = Part(WRAPPER, OPTIMISATION, {**BESIDE_WRAPPER, CRITIC: CRITIC_OPTIM}, default="OptimWrapper")
SCHEDULER = Part(
    _registered(PARAM_SCHEDULERS, "parameter scheduler"),
    beside={"convert_to_iter_based": None},
    given=("optimizer",),
)
SCHEDULERS = Several(SCHEDULER)
BY_OPTIMISER = Keys("param_scheduler", places={STUDENT: SCHEDULERS, CRITIC: SCHEDULERS})


def _schedulers(value: Any) -> Place:
    return BY_OPTIMISER if isinstance(value, Mapping) and value.keys() & {STUDENT, CRITIC} else SCHEDULERS


# --- The run ---------------------------------------------------------------------------------------------------------


def _train_loop(cfg: Mapping[str, Any]) -> str:
    return "EpochLoop" if cfg.get("by_epoch", True) else "IterationLoop"


LOOP = _registered(LOOPS, "loop")
TRAIN_LOOP = Part(LOOP, beside={"by_epoch": None}, given=("runner", "dataloader"), default=_train_loop)
VAL_LOOP = Part(LOOP, given=("runner", "dataloader", "evaluator"), default="ValLoop")
TEST_LOOP = Part(LOOP, given=("runner", "dataloader", "evaluator"), default="TestLoop")


def _names(*readers: Callable[..., Any], but: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for reader in readers for name in arguments_of(reader).without(but).required)


# What mmengine's hooks hand their `**kwargs` on to.
KEYWORDS = {
    CheckpointHook: _names(DistillRunner.save_checkpoint, but=("self", "out_dir", "filename", "meta")),
    EMAHook: _names(ExponentialMovingAverage, MomentumAnnealingEMA, StochasticWeightAverage, but=("model",)),
}
HOOK_SOURCE = _registered(HOOKS, "hook")
HOOK = Part(HOOK_SOURCE, beside={"priority": None}, keywords=KEYWORDS)
MMENGINE_HOOKS = ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")


def _default_hooks() -> Places:
    named: dict[str, Place | None] = dict.fromkeys(MMENGINE_HOOKS, HOOK)
    for name, hook in OWN_HOOKS.items():
        named[name] = Part(HOOK_SOURCE, beside=HOOK.beside, default=hook["type"], keywords=KEYWORDS)
    return named


METRIC = Part(_registered(METRICS, "metric"))
EVALUATORS = Several(METRIC)
BACKEND = Part(_registered(VISBACKENDS, "visualization backend"), beside={"save_dir": None}, given=("save_dir",))
BACKENDS = Several(BACKEND)
COMPILE = Keys("compile", (torch.compile,), given=("model",))
ENVIRONMENT = Keys(
    "env_cfg",
    places={
        "cudnn_benchmark": None,
        "mp_cfg": Keys("mp_cfg", (set_multi_processing,), given=("distributed",)),
        "dist_cfg": FREE,
        "resource_limit": None,
    },
)

TOP_LEVEL = Keys(
    "a config",
    reads=(DistillRunner,),
    places={
        "task": OneOf(plugin_names, "task"),
        "model": MODEL,
        "data_preprocessor": PREPROCESSOR,
        "train_dataloader": LOADER,
        "val_dataloader": LOADER,
        "test_dataloader": LOADER,
        "val_evaluator": EVALUATORS,
        "test_evaluator": EVALUATORS,
        "train_cfg": TRAIN_LOOP,
        "val_cfg": VAL_LOOP,
        "test_cfg": TEST_LOOP,
        "optim_wrapper": OPTIM,
        "param_scheduler": Depending(_schedulers),
        "auto_scale_lr": Keys("auto_scale_lr", places={"base_batch_size": None, "enable": None}),
        "default_hooks": Keys("default_hooks", places=_default_hooks()),
        "custom_hooks": Several(HOOK, single=False),
        "visualizer": Part(_registered(VISUALIZERS, "visualizer"), {"vis_backends": BACKENDS}),
        "log_processor": Part(_registered(LOG_PROCESSORS, "log processor"), default="LogProcessor"),
        "randomness": Keys("randomness", (DistillRunner.set_randomness,), given=("self",)),
        "env_cfg": ENVIRONMENT,
        "compile": Depending(lambda value: COMPILE if isinstance(value, Mapping) else FREE),
        "model_wrapper_cfg": Keys("model_wrapper_cfg", (DistillDataParallel,), given=("module", "device_ids")),
        "sync_bn": None,
        "custom_imports": Keys("custom_imports", (import_modules_from_strings,)),
        "activation_checkpointing": None,
        "efficient_conv_bn_eval": None,
    },
    given=("cfg",),
)
