"""The check of a config: every fault is found, with its path and the nearest name, and a clean config passes."""

import copy
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.registry import DATASETS, METRICS
from torch import nn
from torch.utils.data import Dataset

from kd_tasks import paths
from kd_tasks.engine.config import load_config
from kd_tasks.engine.config_check import check_config, find_faults
from kd_tasks.engine.config_schema import Arguments, arguments_of
from kd_tasks.errors import UserError
from kd_tasks.losses.base import AdversarialLoss
from kd_tasks.registry import CRITERIA, CRITICS, DECODERS, LOSSES, NETWORKS


@NETWORKS.register
class CheckedNetwork(nn.Module):
    """A network with a required argument."""

    def __init__(self, classes: int, width: int = 8, norm: dict | None = None) -> None:
        raise AssertionError("the check builds nothing")


@CRITERIA.register
class CheckedCriterion(nn.Module):
    """A criterion."""

    def __init__(self, aux_weight: float = 0.4) -> None:
        raise AssertionError("the check builds nothing")


@DECODERS.register
class CheckedDecoder:
    """A decoder."""


@CRITICS.register
class CheckedCritic(nn.Module):
    """A critic."""

    def __init__(self, depth: int = 3) -> None:
        raise AssertionError("the check builds nothing")


@LOSSES.register
class CheckedAdversarial(AdversarialLoss):
    """A loss with a critic."""

    def __init__(self, critic: dict | None = None) -> None:
        raise AssertionError("the check builds nothing")

    def compute(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return student.sum()

    compute_critic = compute


@DATASETS.register_module(force=True)
class CheckedData(Dataset):
    """A data set."""

    def __init__(
        self, data_root: str = "datasets/no_such_folder", split: str = "train", transforms: tuple = ()
    ) -> None:
        raise AssertionError("the check builds nothing")


@METRICS.register_module(force=True)
class CheckedMetric(BaseMetric):
    """A metric that hands its keywords on."""

    def __init__(self, classes: int = 2, **kwargs) -> None:
        super().__init__(**kwargs)

    def process(self, data_batch, data_samples):
        """Nothing."""

    def compute_metrics(self, results):
        """Nothing."""
        return {}


def clean() -> dict:
    """A distillation with everything that a config may hold."""
    network = {"type": "CheckedNetwork", "classes": 3}
    transforms = [
        {"type": "HorizontalFlip", "p": 0.5},
        {"type": "OneOf", "transforms": [{"type": "RandomCrop", "height": 8, "width": 8}], "p": 1.0},
    ]
    data = {"type": "CheckedData", "transforms": transforms}
    loader = {"batch_size": 2, "num_workers": 0, "sampler": {"type": "EpochSampler", "shuffle": True}, "dataset": data}
    return {
        "task": "segmentation",
        "work_dir": "work_dirs/x",
        "model": {
            "type": "Distiller",
            "student": network,
            "teacher": {**network, "width": 32, "mean": [0, 0, 0], "std": [1, 1, 1], "prepare": {"compile": False}},
            "transfers": {
                "pixel": {"on": "logits", "loss": {"type": "PixelWise"}, "weight": 10.0},
                "pair": {
                    "on": "backbone.layer4",
                    "loss": {"type": "PairWise", "pool": 2},
                    "weight": 0.5,
                    "begin": "epoch 1",
                },
                "hint": {
                    "student": "backbone.layer2",
                    "teacher": "backbone.layer3",
                    "connector": "conv1x1",
                    "loss": {"type": "Hint"},
                    "weight": {"start": 0.0, "end": 1.0, "until": "epoch 5"},
                },
                "own": {
                    "student": "backbone.layer2",
                    "target": "backbone.layer4",
                    "connector": {"type": "Conv1x1", "norm": True},
                    "loss": {"type": "Hint"},
                },
            },
            "criterion": {"type": "CheckedCriterion"},
            "decoder": {"type": "CheckedDecoder"},
            "data_preprocessor": {"type": "ImagePreprocessor", "mean": [0, 0, 0], "std": [1, 1, 1]},
        },
        "train_dataloader": loader,
        "val_dataloader": {
            **loader,
            "collate_fn": {"type": "collate_samples"},
            "worker_init_fn": {"type": "seed_worker"},
        },
        "val_evaluator": [{"type": "CheckedMetric", "classes": 3, "prefix": "x"}],
        "val_cfg": {},
        "test_dataloader": {**loader, "dataset": {"type": "ConcatDataset", "datasets": [data, data]}},
        "test_evaluator": {"type": "CheckedMetric"},
        "train_cfg": {"by_epoch": True, "max_epochs": 3, "val_interval": 1},
        "optim_wrapper": {
            "optimizer": {"type": "SGD", "lr": 0.1, "weight_decay": 1e-4},
            "clip_grad": {"max_norm": 1.0},
            "paramwise_cfg": {"norm_decay_mult": 0.0, "custom_keys": {"head": {"lr_mult": 10}}},
        },
        "param_scheduler": [
            {"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "begin": 0, "end": 100},
            {"type": "PolyLR", "power": 0.9, "eta_min": 1e-4, "convert_to_iter_based": True},
        ],
        "default_hooks": {"logger": {"interval": 5}, "checkpoint": {"interval": 2}, "timer": None},
        "custom_hooks": [{"type": "EMAHook", "momentum": 1e-3, "priority": 49}],
        "visualizer": {"type": "Visualizer", "vis_backends": [{"type": "LocalVisBackend"}]},
        "log_processor": {"window_size": 10},
        "randomness": {"seed": 0, "deterministic": True},
        "env_cfg": {"cudnn_benchmark": False, "mp_cfg": {"mp_start_method": "fork"}, "dist_cfg": {"backend": "gloo"}},
        "compile": {"mode": "default"},
        "_helper": 3,
    }


def changed(path: str, value: object) -> Config:
    """The clean config with `value` at `path`; a path ending in `-` takes the key out."""
    values = Config(clean()).to_dict()  # dicts that are shared become several
    *parents, last = path.removesuffix("-").split(".")
    place = values
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place[name]
    key = int(last) if isinstance(place, list) else last
    if path.endswith("-"):
        del place[key]
    else:
        place[key] = value
    return Config(values)


def test_clean_config_has_no_faults():
    assert find_faults(Config(clean()), files=False) == []


SINGLE_FAULTS = [
    # (path of what is changed, value, path of the fault, what it says)
    ("model.type", "Distller", "model.type", "Did you mean 'Distiller'?"),
    ("model.student.type", "ChekedNetwork", "model.student.type", "Did you mean 'CheckedNetwork'?"),
    ("model.student.hidth", 3, "model.student.hidth", "CheckedNetwork takes no 'hidth'. Did you mean 'width'?"),
    ("model.student.classes-", None, "model.student", "CheckedNetwork needs 'classes'"),
    (
        "model.student",
        {"type": "PixelWise"},
        "model.student.type",
        "'PixelWise' is a loss, but a network belongs here.",
    ),
    ("model.student", {"classes": 3}, "model.student", "a network needs a 'type'"),
    ("model.student", "CheckedNetwork", "model.student", "a network is a dict with a 'type'"),
    ("model.student.type", 3, "model.student", "neither a name nor a class"),
    ("model.teacher.chekpoint", "x", "model.teacher.chekpoint", "Did you mean 'checkpoint'?"),
    ("model.teacher.mode", "evl", "model.teacher.mode", "Did you mean 'eval'?"),
    ("model.teacher.prepare", {"compil": 1}, "model.teacher.prepare.compil", "Did you mean 'compile'?"),
    ("model.transfers.pixel.loss.type", "PixelWize", "model.transfers.pixel.loss.type", "Did you mean 'PixelWise'?"),
    ("model.transfers.pair.loss.pol", 2, "model.transfers.pair.loss.pol", "Did you mean 'pool'?"),
    ("model.transfers.pair.los", 2, "model.transfers.pair.los", "Did you mean 'loss'?"),
    ("model.transfers.pair.loss-", 2, "model.transfers.pair", "a transfer needs 'loss'"),
    ("model.transfers.pair.begin", "epok 1", "model.transfers.pair.begin", "epoch 5"),
    ("model.transfers.hint.connector", "conv1x2", "model.transfers.hint.connector", "Did you mean 'conv1x1'?"),
    ("model.transfers.own.connector.nrm", 1, "model.transfers.own.connector.nrm", "Did you mean 'norm'?"),
    ("model.transfers.hint.weight.untill", 1, "model.transfers.hint.weight.untill", "Did you mean 'until'?"),
    ("model.transfers.hint.weight.until", "5", "model.transfers.hint.weight.until", "'epoch 5' or 'iter 1000'"),
    ("model.transfers.hint.weight", "big", "model.transfers.hint.weight", "neither a number nor"),
    ("model.transfers.pixel.student", "logits", "model.transfers.pixel", "leave out 'student'"),
    ("model.transfers.own.teacher", "logits", "model.transfers.own", "exclude each other"),
    ("model.transfers.hint.student-", None, "model.transfers.hint", "a tap on both sides"),
    ("model.transfers", ["pixel"], "model.transfers", "a dict by name"),
    ("model.criterion.aux_wight", 1, "model.criterion.aux_wight", "Did you mean 'aux_weight'?"),
    ("model.decoder.x", 1, "model.decoder.x", "CheckedDecoder takes no 'x'. It takes: nothing."),
    ("model.data_preprocessor.men", 1, "model.data_preprocessor.men", "Did you mean 'mean'?"),
    ("model.studnt", {}, "model.studnt", "Did you mean 'student'?"),
    ("train_dataloader.num_wokers", 1, "train_dataloader.num_wokers", "Did you mean 'num_workers'?"),
    ("train_dataloader.dataset.type", "ChekedData", "train_dataloader.dataset.type", "Did you mean 'CheckedData'?"),
    ("train_dataloader.dataset.splt", "val", "train_dataloader.dataset.splt", "Did you mean 'split'?"),
    ("train_dataloader.sampler.type", "EpochSampl", "train_dataloader.sampler.type", "Did you mean 'EpochSampler'?"),
    ("train_dataloader.sampler.shufle", 1, "train_dataloader.sampler.shufle", "Did you mean 'shuffle'?"),
    ("val_dataloader.collate_fn.type", "colate_samples", "val_dataloader.collate_fn.type", "'collate_samples'?"),
    ("val_dataloader.worker_init_fn.type", "sed_worker", "val_dataloader.worker_init_fn.type", "'seed_worker'?"),
    (
        "train_dataloader.dataset.transforms.0.type",
        "HorizontalFlp",
        "train_dataloader.dataset.transforms.0.type",
        "Did you mean 'HorizontalFlip'?",
    ),
    ("train_dataloader.dataset.transforms.0.prob", 1, "train_dataloader.dataset.transforms.0.prob", "takes no 'prob'"),
    ("train_dataloader.dataset.transforms.0.p", 7, "train_dataloader.dataset.transforms.0", "less than or equal to 1"),
    ("train_dataloader.dataset.transforms.0", {"p": 1}, "train_dataloader.dataset.transforms.0", "dict(type='Name'"),
    (
        "train_dataloader.dataset.transforms.1.transforms.0.heigth",
        8,
        "train_dataloader.dataset.transforms.1.transforms.0.heigth",
        "Did you mean 'height'?",
    ),
    (
        "test_dataloader.dataset.datasets.1.splt",
        "val",
        "test_dataloader.dataset.datasets.1.splt",
        "Did you mean 'split'?",
    ),
    ("val_evaluator.0.type", "ChekedMetric", "val_evaluator.0.type", "Did you mean 'CheckedMetric'?"),
    ("val_evaluator.0.prefx", "x", "val_evaluator.0.prefx", "Did you mean 'prefix'?"),
    ("test_evaluator", {"type": "CheckedData"}, "test_evaluator.type", "is a data set, but a metric belongs here"),
    ("train_cfg.max_epoch", 3, "train_cfg.max_epoch", "Did you mean 'max_epochs'?"),
    ("train_cfg", {"by_epoch": False, "val_interval": 3}, "train_cfg", "IterationLoop needs 'max_iters'"),
    ("train_cfg.max_iters", 3, "train_cfg", "not both"),
    ("train_cfg.max_epochs", -3, "train_cfg.max_epochs", "a whole number from 1 on"),
    ("train_cfg.val_interval", 0, "train_cfg.val_interval", "a whole number from 1 on"),
    ("train_dataloader.batch_size", 0, "train_dataloader.batch_size", "a whole number from 1 on"),
    ("train_dataloader.num_workers", 1.5, "train_dataloader.num_workers", "a whole number from 0 on"),
    ("model.student.classes", "four", "model.student.classes", "takes a number here, not 'four'"),
    ("optim_wrapper.optimizer.lr", "abc", "optim_wrapper.optimizer.lr", "SGD takes a number here, not 'abc'"),
    ("train_cfg.type", "EpochLoop", "train_cfg.by_epoch", "leave one of them out"),
    ("optim_wrapper.optimizer.type", "SGDD", "optim_wrapper.optimizer.type", "Did you mean 'SGD'?"),
    ("optim_wrapper.optimizer.momentm", 0.9, "optim_wrapper.optimizer.momentm", "Did you mean 'momentum'?"),
    ("optim_wrapper.optimizer-", 0, "optim_wrapper", "OptimWrapper needs 'optimizer'"),
    ("optim_wrapper.clip_grd", {}, "optim_wrapper.clip_grd", "Did you mean 'clip_grad'?"),
    ("optim_wrapper.clip_grad", {"max_nrm": 1}, "optim_wrapper.clip_grad.max_nrm", "Did you mean 'max_norm'?"),
    (
        "optim_wrapper.constructor",
        "DefaultConstructor",
        "optim_wrapper.constructor",
        "'DefaultOptimWrapperConstructor'",
    ),
    ("optim_wrapper.paramwise_cfg.norm_decay", 0, "optim_wrapper.paramwise_cfg.norm_decay", "'norm_decay_mult'?"),
    (
        "optim_wrapper.paramwise_cfg.custom_keys.head.lr_mul",
        1,
        "optim_wrapper.paramwise_cfg.custom_keys.head.lr_mul",
        "Did you mean 'lr_mult'?",
    ),
    (
        "optim_wrapper.optimizer.weight_decay-",
        None,
        "optim_wrapper.paramwise_cfg.norm_decay_mult",
        "optim_wrapper.optimizer.weight_decay",
    ),
    ("optim_wrapper.critic", {"optimizer": {"type": "SGD"}}, "optim_wrapper.critic", "no transfer has a critic"),
    ("param_scheduler.1.type", "PolyLRR", "param_scheduler.1.type", "Did you mean 'PolyLR'?"),
    ("param_scheduler.1.powr", 1, "param_scheduler.1.powr", "Did you mean 'power'?"),
    ("param_scheduler.0.strt_factor", 1, "param_scheduler.0.strt_factor", "Did you mean 'start_factor'?"),
    ("param_scheduler.0.param_name", "lr", "param_scheduler.0.param_name", "LinearLR takes no 'param_name'"),
    ("param_scheduler", {"student": []}, "param_scheduler", "by optimizer belong to a run with optim_wrapper.critic"),
    ("default_hooks.loger", {"type": "LoggerHook"}, "default_hooks.loger", "Did you mean 'logger'?"),
    ("default_hooks.logger.interva", 1, "default_hooks.logger.interva", "Did you mean 'interval'?"),
    ("default_hooks.timer", {}, "default_hooks.timer", "a hook needs a 'type'"),
    ("custom_hooks.0.type", "EMAHok", "custom_hooks.0.type", "Did you mean 'EMAHook'?"),
    ("custom_hooks.0.momentun", 1, "custom_hooks.0.momentun", "Did you mean 'momentum'?"),
    ("custom_hooks", {"type": "EMAHook"}, "custom_hooks", "a list belongs here"),
    ("visualizer.vis_backends.0.type", "LocalVis", "visualizer.vis_backends.0.type", "'LocalVisBackend'?"),
    ("log_processor.windw_size", 1, "log_processor.windw_size", "Did you mean 'window_size'?"),
    ("randomness.sed", 1, "randomness.sed", "Did you mean 'seed'?"),
    ("env_cfg.cudnn_bench", 1, "env_cfg.cudnn_bench", "Did you mean 'cudnn_benchmark'?"),
    ("env_cfg.mp_cfg.start_method", "fork", "env_cfg.mp_cfg.start_method", "Did you mean 'mp_start_method'?"),
    ("compile.mod", "x", "compile.mod", "Did you mean 'mode'?"),
    ("optim_wraper", {}, "optim_wraper", "no part of the run reads this key. Did you mean 'optim_wrapper'?"),
    ("num_classes", 19, "num_classes", "begins with an underscore: _num_classes"),
    ("task", "segmentaton", "task", "Did you mean 'segmentation'?"),
    ("model-", None, "model", "a config needs a model"),
    ("work_dir-", None, "work_dir", "a training needs a folder"),
    ("train_dataloader-", None, "train_dataloader", "missing beside 'train_cfg' and 'optim_wrapper'"),
    ("test_evaluator-", None, "test_evaluator", "missing beside 'test_dataloader'"),
]


@pytest.mark.parametrize(
    ("path", "value", "where", "what"), SINGLE_FAULTS, ids=[f"{f[0]}={f[1]}"[:60] for f in SINGLE_FAULTS]
)
def test_a_single_fault_is_named_with_its_path(path, value, where, what):
    faults = find_faults(changed(path, value), files=False)
    assert [fault for fault in faults if fault.startswith(f"{where}: ") and what in fault], faults
    assert len(faults) <= 2


def test_all_faults_are_reported_at_once_one_a_line():
    values = clean()
    values["optim_wraper"] = {}
    values["model"]["student"]["wdth"] = 3
    values["train_dataloader"]["dataset"]["splt"] = "val"
    values["param_scheduler"][0]["strt_factor"] = 1
    with pytest.raises(UserError) as fault:
        check_config(Config(values))
    lines = str(fault.value).splitlines()
    assert lines[0].endswith("faults:")
    for path in (
        "optim_wraper",
        "model.student.wdth",
        "train_dataloader.dataset.splt",
        "param_scheduler.0.strt_factor",
    ):
        assert sum(line.strip().startswith(f"{path}: ") for line in lines) == 1, lines


def test_the_check_changes_nothing_and_builds_nothing():
    cfg = Config(clean())
    before = copy.deepcopy(cfg.to_dict())
    find_faults(cfg)
    assert cfg.to_dict() == before


# --- Types by dotted name and by class -------------------------------------------------------------------------------


@pytest.mark.parametrize("named", ["torchvision.models.ResNet", CheckedNetwork])
def test_dotted_names_and_classes_are_types(named):
    arguments = {"block": 1, "layers": 2} if isinstance(named, str) else {"classes": 3}
    assert find_faults(changed("model.student", {"type": named, **arguments}), files=False) == []
    faults = find_faults(changed("model.student", {"type": named, **arguments, "nonsense": 1}), files=False)
    assert [f for f in faults if f.startswith("model.student.nonsense: ")]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("no_such_package_here.Network", "No module named 'no_such_package_here'"),
        ("torchvision.models.ResNt", "Did you mean 'ResNet'?"),
        ("torchvision.models", "but a network belongs here"),
    ],
)
def test_dotted_names_that_lead_nowhere(name, what):
    faults = find_faults(changed("model.student", {"type": name}), files=False)
    assert len(faults) == 1 and faults[0].startswith("model.student.type: ") and what in faults[0]


def test_classes_as_types_of_optimizers():
    assert find_faults(changed("optim_wrapper.optimizer.type", torch.optim.AdamW), files=False) == []


# --- Adversarial transfers, several teachers -------------------------------------------------------------------------


def adversarial() -> dict:
    values = clean()
    values["model"]["transfers"]["holistic"] = {
        "on": "logits",
        "loss": {"type": "CheckedAdversarial", "critic": {"type": "CheckedCritic", "depth": 2}},
    }
    values["optim_wrapper"]["critic"] = {"optimizer": {"type": "Adam", "lr": 1e-4}}
    return values


def test_adversarial_transfer_with_its_critic_and_optimizer():
    values = adversarial()
    assert find_faults(Config(values), files=False) == []
    values["param_scheduler"] = {"student": values["param_scheduler"], "critic": []}
    assert find_faults(Config(values), files=False) == []
    values["param_scheduler"].pop("critic")
    assert find_faults(Config(values), files=False) == [
        "param_scheduler: 'critic' is missing; it may be an empty list."
    ]


def test_adversarial_transfer_without_optimizer():
    values = adversarial()
    values["optim_wrapper"].pop("critic")
    faults = find_faults(Config(values), files=False)
    assert len(faults) == 1 and faults[0].startswith("optim_wrapper.critic: ") and "'holistic'" in faults[0]


def test_faults_of_a_critic():
    values = adversarial()
    values["model"]["transfers"]["holistic"]["loss"]["critic"] = {"type": "CheckedCritik"}
    values["optim_wrapper"]["critic"]["optimizer"]["lrr"] = 1
    faults = find_faults(Config(values), files=False)
    assert [re.split(r": ", f)[0] for f in faults] == [
        "model.transfers.holistic.loss.critic.type",
        "optim_wrapper.critic.optimizer.lrr",
    ]
    assert "Did you mean 'CheckedCritic'?" in faults[0]


def test_several_teachers():
    values = clean()
    teacher = values["model"].pop("teacher")
    values["model"]["teachers"] = {"big": teacher, "wide": teacher}
    transfers = values["model"]["transfers"]
    transfers["pixel"] = {"student": "logits", "teacher": "big.logits", "loss": {"type": "PixelWise"}}
    transfers["pair"] = {"student": "logits", "teacher": "wide.logits", "loss": {"type": "PixelWise"}}
    transfers["hint"]["teacher"] = "bg.backbone"
    faults = find_faults(Config(values), files=False)
    assert len(faults) == 1 and faults[0].startswith("model.transfers.hint.teacher: ")
    assert "Did you mean 'big'?" in faults[0]
    values["model"]["teacher"] = teacher
    assert any(f.startswith("model.teachers: ") for f in find_faults(Config(values), files=False))


def test_transfer_from_a_teacher_that_is_not_there():
    faults = find_faults(changed("model.teacher-", None), files=False)
    assert {f.partition(": ")[0] for f in faults} == {
        "model.transfers.pixel.on",
        "model.transfers.pair.on",
        "model.transfers.hint.teacher",
    }


# --- Files -----------------------------------------------------------------------------------------------------------


def test_missing_checkpoints_are_named_with_key_and_file(tmp_path):
    values = clean()
    values["model"]["teacher"]["checkpoint"] = "work_dirs/nowhere/student.pth"
    values["load_from"] = str(tmp_path)
    values["train_dataloader"]["dataset"]["data_root"] = str(tmp_path)
    faults = [f for f in find_faults(Config(values)) if "data_root" not in f]
    assert len(faults) == 1
    assert faults[0].startswith("model.teacher.checkpoint: 'work_dirs/nowhere/student.pth' does not exist.")
    values["load_from"] = str(tmp_path / "no.pth")
    assert any(f.startswith("load_from: ") for f in find_faults(Config(values)))


def test_missing_checkpoint_of_a_shipped_teacher_names_the_config_that_makes_it():
    name = next(n for n in paths.config_names() if Path(n).name.startswith("teacher_"))
    values = clean()
    values["model"]["teacher"]["checkpoint"] = f"work_dirs/{Path(name).name}/student.pth"
    assert any(f"'kd-tasks train {name}'" in fault for fault in find_faults(Config(values)))


def test_missing_data_folder_is_named_once_with_all_its_keys(tmp_path):
    faults = find_faults(Config(clean()))
    assert len(faults) == 1 and "'datasets/no_such_folder' does not exist" in faults[0]
    for place in ("train_dataloader.dataset", "val_dataloader.dataset", "test_dataloader.dataset.datasets.1"):
        assert f"{place}.data_root" in faults[0]
    assert "KD_TASKS_DATA" in faults[0]


def test_missing_data_folder_says_how_to_get_a_twin():
    faults = find_faults(changed("train_dataloader.dataset.data_root", "elsewhere/camvid"))
    assert any("kd-tasks data synth camvid elsewhere/camvid" in fault for fault in faults)


@pytest.mark.parametrize(
    ("name", "card", "twin"),
    [
        ("reid/teacher_r50_viper", "reid_folder.md", ""),
        ("reid/demo_alone", "market1501.md", "'kd-tasks data synth market1501 datasets/market1501_twin' writes"),
    ],
)
def test_missing_data_folder_names_the_card_and_the_whole_twin(name, card, twin, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KD_TASKS_DATA", raising=False)
    (fault,) = (fault for fault in find_faults(load_config(name)) if "data_root" in fault)
    assert card in fault and twin in fault
    assert twin or "synth" not in fault


def test_data_folder_below_the_environment_variable(tmp_path, monkeypatch):
    (tmp_path / "no_such_folder").mkdir()
    monkeypatch.setenv("KD_TASKS_DATA", str(tmp_path))
    assert find_faults(Config(clean())) == []


# --- Options ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path) -> Path:
    path = tmp_path / "run.py"
    values = clean()
    values["model"]["student"]["norm"] = {"groups": 4}
    path.write_text("".join(f"{key} = {value!r}\n" for key, value in values.items()), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "option",
    [
        "optim_wrapper.optimizer.lr=0.5",
        "optim_wrapper.optimizer.momentum=0.9",
        "optim_wrapper.type=OptimWrapper",
        "model.student.width=4",
        "model.student.norm.groups=8",
        "model.transfers.hint.weight.end=3",
        "model.transfers.extra=dict(on='logits', loss=dict(type='PixelWise'))",
        "param_scheduler.1.power=1.0",
        "randomness.seed=7",
        "env_cfg.dist_cfg.timeout=60",
        "work_dir=elsewhere",
        "load_from=None",
        "auto_scale_lr=dict(enable=False, base_batch_size=8)",
    ],
)
def test_options_that_are_fine(run, option):
    assert find_faults(load_config(run, [option]), files=False) == []


@pytest.mark.parametrize(
    ("option", "where", "what"),
    [
        ("optim_wraper.optimizer.lr=1", "optim_wraper", "Did you mean 'optim_wrapper'?"),
        ("optim_wrapper.optimizer.lrr=1", "optim_wrapper.optimizer.lrr", "Did you mean 'lr'?"),
        ("optim_wrapper.optimiser.lr=1", "optim_wrapper.optimiser", "Did you mean 'optimizer'?"),
        ("model.student.wdth=1", "model.student.wdth", "Did you mean 'width'?"),
        ("model.student.norm.group=1", "model.student.norm.group", "Did you mean 'groups'?"),
        ("model.transfers.pixl.weight=3", "model.transfers.pixl", "Did you mean 'pixel'?"),
        ("model.transfers.hint.wieght.end=3", "model.transfers.hint.wieght", "Did you mean 'weight'?"),
        ("param_scheduler.0.powr=1", "param_scheduler.0.powr", "LinearLR takes no 'powr'"),
        ("seed=1", "seed", "no part of the run reads this key"),
        ("_helper=4", "_helper", "too late for a helper variable"),
    ],
)
def test_misspelt_options_are_faults_with_the_nearest_name(run, option, where, what):
    faults = find_faults(load_config(run, [option]), files=False)
    assert [f for f in faults if f.startswith(f"{where}: ") and what in f], faults


# --- Signatures ------------------------------------------------------------------------------------------------------


class Base:
    def __init__(self, first, second, third=3, *, fourth=4):
        pass


class HandsOn(Base):
    def __init__(self, own, **kwargs):
        super().__init__(1, second=own, **kwargs)


class HandsOnAll(HandsOn):
    def __init__(self, *args, flag=False, **kwargs):
        super().__init__(*args, **kwargs)


class KeepsThem(Base):
    def __init__(self, own, **kwargs):
        self.kwargs = kwargs


def test_arguments_of_classes_that_hand_their_keywords_on():
    assert arguments_of(HandsOn) == Arguments({"own": True, "third": False, "fourth": False}, False)
    assert arguments_of(HandsOnAll) == Arguments({"flag": False, "own": True, "third": False, "fourth": False}, False)
    assert arguments_of(KeepsThem) == Arguments({"own": True}, True)


# --- Shipped configs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", paths.config_names())
def test_shipped_configs_are_clean(name):
    assert find_faults(load_config(name), files=False) == []
