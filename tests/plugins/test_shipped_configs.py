"""Every shipped config gives a model that takes a training step; the paper-scale ones at a small picture size."""

import pytest
import torch
from kd_reid.synthetic import DOMAINS, write_market1501, write_msmt17

from kd_tasks import plugins
from kd_tasks.engine.build import build_loader, is_distillation, without_pretrained
from kd_tasks.engine.compat import build_optimisers
from kd_tasks.engine.config import load_config
from kd_tasks.paths import config_names
from kd_tasks.registry import TASK_MODELS

SIZES = {"reid": (64, 32)}
SIZE = (64, 96)
FOREIGN_WEIGHTS = ("pretrained", "checkpoint")


def model_config(cfg):
    """The model of a config with random weights in place of those that one downloads or trains first."""
    model = without_pretrained(cfg["model"])
    for part in ("network", "student", "teacher"):
        if part in model:
            model[part] = untrained(model[part])
    if "teachers" in model:
        model["teachers"] = {name: untrained(teacher) for name, teacher in model["teachers"].items()}
    return {**model, "input_size": SIZES.get(cfg.task, SIZE)} if is_distillation(cfg) else model


def untrained(network):
    return {key: value for key, value in network.items() if key not in FOREIGN_WEIGHTS}


def targets_for(task):
    """Targets of a small batch: its size is theirs."""
    if task == "classification":
        return {"label": torch.tensor([0, 1])}
    if task == "reid":  # two people, and two pictures of nobody knows whom
        return {"label": torch.tensor([-1, -1, 0, 0, 1, 1])}
    return {"mask": torch.randint(0, 11, (2, *SIZE), dtype=torch.uint8)}


def batch_for(task):
    targets = targets_for(task)
    count = len(next(iter(targets.values())))
    inputs = torch.randint(0, 256, (count, 3, *SIZES.get(task, SIZE)), dtype=torch.uint8)
    return {"inputs": inputs, "targets": targets, "meta": [{}] * count}


@pytest.mark.parametrize("name", config_names())
def test_one_step(name):
    plugins.load_all()
    cfg = load_config(name)
    model = TASK_MODELS.build(model_config(cfg), "model")
    log = model.train().train_step(batch_for(cfg.task), build_optimisers(model, cfg.optim_wrapper))
    assert all(value.isfinite() for value in log.values()), log
    terms = {key.partition(".")[2] for key in log if key.startswith("kd.")}
    assert terms == set(cfg.model.get("transfers", {}))


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Few people in the layouts of the re-identification data sets, by type; as many people as a batch takes."""
    root = tmp_path_factory.mktemp("people")
    few = dict.fromkeys(("source_identities", "source_test_identities"), 0)
    write_market1501(root / "market", target_identities=33, test_identities=1, size=(32, 16), **few)
    write_msmt17(root / "msmt", train_identities=17, test_identities=1, size=(32, 16))
    target = root / "market" / DOMAINS[-1]
    for picture in (target / "bounding_box_train").iterdir():
        folder = root / "folder" / "train" / picture.name.split("_")[0]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / picture.name).symlink_to(picture)
    return {"Market1501": target, "DukeMTMCreID": target, "MSMT17": root / "msmt", "ReIDFolder": root / "folder"}


@pytest.mark.parametrize("name", [n for n in config_names() if n.startswith("reid/") and "/demo_" not in n])
def test_the_batches_of_re_identification(name, people):
    """Read through the config's own transforms and sampler, from people in the data set's own layout."""
    plugins.load_all()
    cfg = load_config(name)
    loader = {**cfg.train_dataloader, "num_workers": 0}
    loader["dataset"] = {**loader["dataset"], "data_root": str(people[loader["dataset"]["type"]])}
    batch = next(iter(build_loader(loader, shuffle=True)))
    assert batch["inputs"].shape == (64, 3, 256, 128)
    labels = batch["targets"]["label"]
    counts = labels[labels >= 0].unique(return_counts=True)[1]
    sampler = loader["sampler"]
    assert counts.tolist() == [sampler["pictures"]] * sampler["identities"]
    assert int((labels < 0).sum()) == sampler.get("unlabelled", 0)


def test_a_feature_loss_on_an_image_folder_needs_few_lines():
    from kd_tasks.paths import find_config

    lines = find_config("classification/kd_r34_r18_imagefolder").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) <= 25
