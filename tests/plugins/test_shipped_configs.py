"""Every shipped config gives a model that takes a training step; the paper-scale ones at a small picture size."""

import pytest
import torch
from kd_landmarks.synthetic import write_300w, write_wflw
from kd_lanes.synthetic import write_culane, write_tusimple
from kd_reid.synthetic import DOMAINS, write_market1501, write_msmt17

from kd_tasks import plugins
from kd_tasks.distiller import Distiller
from kd_tasks.engine.build import build_loader, is_distillation, without_pretrained
from kd_tasks.engine.compat import build_optimisers
from kd_tasks.engine.config import load_config
from kd_tasks.methods.teacher_supervises.pseudo_labels import Rounds
from kd_tasks.paths import config_names
from kd_tasks.registry import TASK_MODELS

SIZES = {"reid": (64, 32), "landmarks": (64, 64)}
SKY = {"culane": 60, "tusimple": 0}
SIZE = (64, 96)
LATE = 10**6  # an iteration at which every transfer has begun
WITH_TWIN = ("_300w", "_wflw")
FOREIGN_WEIGHTS = ("pretrained", "checkpoint")


def model_config(cfg):
    """The model of a config with random weights in place of those that one downloads or trains first."""
    model = {key: value for key, value in without_pretrained(cfg["model"]).items() if key not in FOREIGN_WEIGHTS}
    for part in ("network", "student", "partner", "teacher"):
        if part in model:
            model[part] = untrained(model[part])
    if "teachers" in model:
        model["teachers"] = {name: untrained(teacher) for name, teacher in model["teachers"].items()}
    return {**model, "input_size": SIZES.get(cfg.task, SIZE)} if is_distillation(cfg) else model


def untrained(network):
    """A network's config without weights; one that is made for a picture size, for that of the tests."""
    own = {key: value for key, value in network.items() if key not in FOREIGN_WEIGHTS}
    return own | {"input_size": SIZE} if "input_size" in own else own


def targets_for(cfg):
    """Targets of a small batch: its size is theirs."""
    task = cfg.task
    if task == "landmarks":
        return faces_for(cfg)
    if task == "classification":
        return {"label": torch.tensor([0, 1])}
    if task == "reid":  # two people, and two pictures of nobody knows whom
        return {"label": torch.tensor([-1, -1, 0, 0, 1, 1])}
    if task == "lanes":
        lanes = cfg.model.get("network", cfg.model.get("student"))["num_lanes"]
        mask = torch.randint(0, lanes + 1, (2, *SIZE), dtype=torch.uint8)
        return {"mask": mask, "exist": torch.randint(0, 2, (2, lanes), dtype=torch.uint8)}
    return {"mask": torch.randint(0, 11, (2, *SIZE), dtype=torch.uint8)}


def faces_for(cfg):
    """Two labelled faces and one that is not, with as many points as the network has."""
    count, points = 3, cfg.model.get("network", cfg.model.get("student"))["points"]
    everywhere = torch.ones(count, points, dtype=torch.bool)
    return {
        "points": 8 + 48 * torch.rand(count, points, 2),
        "visible": everywhere,
        "occluded": ~everywhere,
        "labelled": torch.tensor([True, True, False]),
        "box": torch.tensor([8.0, 8.0, 48.0, 48.0]).repeat(count, 1),
        "to_input": torch.eye(2, 3).repeat(count, 1, 1),
    }


def batch_for(cfg):
    targets = targets_for(cfg)
    count = len(next(iter(targets.values())))
    inputs = torch.randint(0, 256, (count, 3, *SIZES.get(cfg.task, SIZE)), dtype=torch.uint8)
    return {"inputs": inputs, "targets": targets, "meta": [{"index": index} for index in range(count)]}


@pytest.mark.parametrize("name", config_names())
def test_one_step(name):
    plugins.load_all()
    cfg = load_config(name)
    model = TASK_MODELS.build(model_config(cfg), "model")
    if isinstance(model, Distiller):
        model.set_moment(cfg.train_cfg.get("max_iters", LATE), 1)
    if cfg.model.type == "TeacherSupervisesStudents":
        model.progress = Rounds(held_out=torch.zeros(3, dtype=torch.bool))
    log = model.train().train_step(batch_for(cfg), build_optimisers(model, cfg.optim_wrapper))
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


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Few faces in the layouts of 300-W and WFLW, by type."""
    root = tmp_path_factory.mktemp("faces")
    write_300w(root / "300w", train=24, common=2, challenging=2, test=2)
    write_wflw(root / "wflw", train=24, test=2)
    return {"Faces300W": root / "300w", "WFLW": root / "wflw"}


@pytest.mark.parametrize("name", [n for n in config_names() if n.startswith("landmarks/") and n.endswith(WITH_TWIN)])
def test_the_batches_of_faces(name, faces):
    """Read through the config's own transforms and sampler: as many labelled faces as it says, at the right size."""
    plugins.load_all()
    cfg = load_config(name)
    loaders = {which: cfg[f"{which}_dataloader"] for which in ("train", "test")}
    batches = {}
    for which, loader in loaders.items():
        root = str(faces[loader["dataset"]["type"]])
        own = {**loader, "num_workers": 0, "dataset": {**loader["dataset"], "data_root": root}}
        batches[which] = next(iter(build_loader(own, shuffle=which == "train")))
        assert tuple(batches[which]["inputs"].shape[2:]) == tuple(cfg.model.criterion.input_size)
        points = cfg.model.get("network", cfg.model.get("student"))["points"]
        assert batches[which]["targets"]["points"].shape[1:] == (points, 2)
    labelled = batches["train"]["targets"]["labelled"]
    assert len(labelled) == loaders["train"]["batch_size"]
    assert int(labelled.sum()) == loaders["train"].get("sampler", {}).get("labelled", len(labelled))


@pytest.fixture(scope="module")
def roads(tmp_path_factory):
    """Few roads in the layouts of CULane and TuSimple, by type."""
    root = tmp_path_factory.mktemp("roads")
    write_culane(root / "culane", train=12, val=1, test=9)
    write_tusimple(root / "tusimple", train=16, val=1, test=2)
    return {"CULane": root / "culane", "TuSimple": root / "tusimple"}


@pytest.mark.parametrize("name", [f"lanes/alone_enet_{data}" for data in SKY])
def test_the_batches_of_lanes(name, roads):
    """Read through the config's own transforms: pictures and masks of the network's size, from training to testing."""
    plugins.load_all()
    cfg = load_config(name)
    network, batches = cfg.model.network, {}
    for which in ("train", "val", "test"):
        loader = cfg[f"{which}_dataloader"]
        own = {"data_root": str(roads[loader["dataset"]["type"]]), "crop_top": SKY[name.rpartition("_")[2]]}
        small = {**loader, "num_workers": 0, "dataset": {**loader["dataset"], **own}}
        batches[which] = next(iter(build_loader(small, shuffle=which == "train")))
        assert tuple(batches[which]["inputs"].shape[2:]) == tuple(network.input_size)
    batch = batches["train"]
    assert batch["inputs"].shape[0] == cfg.train_dataloader.batch_size
    mask = batch["targets"]["mask"]
    assert tuple(mask.shape[1:]) == tuple(network.input_size)
    assert set(mask.unique().tolist()) <= {*range(network.num_lanes + 1), 255}
    assert batch["targets"]["exist"].shape == (12, network.num_lanes)
    assert ((mask > 0) & (mask < 255)).any()


def test_the_rates_of_a_pose_machine_are_those_of_its_authors():
    plugins.load_all()
    cfg = load_config("landmarks/alone_cpm_300w")
    model = TASK_MODELS.build(model_config(cfg), "model")
    groups = build_optimisers(model, cfg.optim_wrapper).optimizer.param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen = set()
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            stage, bias = ".stages." in name, name.endswith(".bias")
            seen.add((stage, bias))
            assert group["lr"] == pytest.approx(5e-5 * (4 if stage else 1) * (2 if bias else 1)), name
            assert group["weight_decay"] == (0 if bias else 5e-4), name
    assert len(seen) == 4


def test_a_feature_loss_on_an_image_folder_needs_few_lines():
    from kd_tasks.paths import find_config

    lines = find_config("classification/kd_r34_r18_imagefolder").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) <= 25
