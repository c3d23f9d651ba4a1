"""Loaders of segmentation data: label values, pairs, faults, seeds, transforms, and the check against a card."""

import json
import re
import shutil
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from kd_segmentation.datasets import ADE20K, VOC2012, CamVid, Cityscapes, ImageMaskFolder
from mmengine.registry import DATASETS
from PIL import Image
from torch.utils.data import DataLoader

from kd_tasks.engine.randomness import EpochIndex, EpochSampler, seed_worker
from kd_tasks.errors import UserError
from kd_tasks.task import collate_samples
from kd_tasks.vision.augment import Augment
from kd_tasks.vision.cards import card_names, check_dataset, parse_card, read_card
from kd_tasks.vision.images import read_labels, write_image, write_labels

LOADERS = Path(__file__).parents[1] / "fixtures" / "loaders"
STANDARD = [
    {"type": "RandomScale", "scale_limit": (-0.5, 1.1), "p": 1},
    {"type": "PadIfNeeded", "min_height": 32, "min_width": 32, "fill": (124, 116, 104)},
    {"type": "RandomCrop", "height": 32, "width": 32},
    {"type": "HorizontalFlip"},
    {"type": "ColorJitter"},
]


def expected(name):
    return json.loads((LOADERS / name / "expected.json").read_text())


def histogram(mask):
    values, counts = np.unique(np.asarray(mask), return_counts=True)
    return {str(value): int(count) for value, count in zip(values, counts, strict=True)}


def folder(root, masks, split="train", suffix=".png"):
    """A data set of one's own with one noise image for each mask."""
    for number, mask in enumerate(masks):
        noise = np.random.default_rng(number).integers(0, 256, (*mask.shape[:2], 3), dtype=np.uint8)
        write_image(root / "images" / split / f"{number:03d}{suffix}", noise)
        write_image(root / "masks" / split / f"{number:03d}.png", mask)
    return root


CASES = [
    (Cityscapes, "cityscapes", {"train": "train", "val": "val", "test": "test"}, "trainid_histogram"),
    (CamVid, "camvid", {"train": "train", "val": "val", "test": "test"}, "histogram"),
    (ADE20K, "ade20k", {"training": "train", "validation": "val"}, "histogram_after_zero_shift"),
    (VOC2012, "voc2012", {"train": "train", "val": "val"}, "histogram"),
]


@pytest.mark.parametrize(("cls", "name", "splits", "key"), CASES)
def test_loaders_give_the_expected_labels(cls, name, splits, key):
    for in_file, split in splits.items():
        dataset = cls(LOADERS / name, split)
        assert DATASETS.get(cls.__name__) is cls
        records = expected(name)[in_file]
        assert len(dataset) == len(records)
        for item, record in zip((dataset[i] for i in range(len(dataset))), records, strict=True):
            stored_void = str(expected(name).get("ignore_value_in_file", 255))
            counts = {"255" if value == stored_void else value: n for value, n in record[key].items()}
            assert histogram(item["targets"]["mask"]) == counts
            assert item["targets"]["mask"].dtype == torch.uint8
            assert item["inputs"].dtype == torch.uint8
            assert item["inputs"].is_contiguous()
            stored = cv2.imread(str(LOADERS / name / record["image"]))[..., ::-1]
            assert np.array_equal(item["inputs"].permute(1, 2, 0).numpy(), stored)
            meta = item["meta"]
            assert (meta["path"], meta["label_path"]) == (record["image"], record["label"])
            assert meta["original_size"] == meta["input_size"] == stored.shape[:2]


def test_classes_and_palettes_are_the_benchmarks():
    cityscapes, camvid = expected("cityscapes"), expected("camvid")
    assert Cityscapes(LOADERS / "cityscapes", "val").metainfo == {
        "classes": cityscapes["names"],
        "palette": cityscapes["palette"],
    }
    assert CamVid(LOADERS / "camvid", "val").metainfo == {"classes": camvid["classes"], "palette": camvid["palette"]}
    assert len(set(ADE20K.classes)) == len(ADE20K.palette) == 150
    assert VOC2012.palette[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert VOC2012.palette[20] == (0, 64, 128)


def test_cityscapes_maps_every_label_id():
    table = expected("cityscapes")["label_id_to_train_id"]
    assert {key: int(Cityscapes.tables["labelIds"][int(key) % 256]) for key in table} == table
    ids = Cityscapes(LOADERS / "cityscapes", "train")
    train_ids = Cityscapes(LOADERS / "cityscapes", "train", label_type="labelTrainIds")
    assert all(torch.equal(ids[i]["targets"]["mask"], train_ids[i]["targets"]["mask"]) for i in range(2))
    with pytest.raises(UserError, match="label_type is 'labelIDs'"):
        Cityscapes(LOADERS / "cityscapes", "train", label_type="labelIDs")


def test_camvid_needs_no_lists(tmp_path):
    listed = CamVid(LOADERS / "camvid", "train")
    shutil.copytree(LOADERS / "camvid", tmp_path / "camvid", ignore=shutil.ignore_patterns("*.txt"))
    unlisted = CamVid(tmp_path / "camvid", "train")
    assert [unlisted.relative(p.image) for p in unlisted.items] == [listed.relative(p.image) for p in listed.items]
    (tmp_path / "camvid" / "train.txt").write_text("\n/SegNet/CamVid/train/0001TP_006690.png\n")
    with pytest.raises(UserError, match=r"train\.txt:2: .* is not a pair"):
        CamVid(tmp_path / "camvid", "train")


def test_voc_reads_indices_of_palette_images_and_the_enlarged_set(tmp_path):
    base = tmp_path / "VOCdevkit" / "VOC2012"
    shutil.copytree(LOADERS / "voc2012", tmp_path, dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"train_aug\.txt: no such list"):
        VOC2012(tmp_path, "train_aug")
    (base / "ImageSets" / "Segmentation" / "train_aug.txt").write_text("2007_000033\n2007_000032\n")
    enlarged = VOC2012(base, "train_aug")
    assert [item.label.parent.name for item in enlarged.items] == ["SegmentationClassAug"] * 2
    plain = {p.image.stem: read_labels(p.label) for s in ("train", "val") for p in VOC2012(tmp_path, s).items}
    for pair in enlarged.items:
        with Image.open(pair.label) as image:
            assert image.mode == "L"
        assert plain[pair.image.stem].shape == enlarged.stored(pair.label).shape
    with Image.open(VOC2012(tmp_path, "train").items[0].label) as image:
        assert image.mode == "P"


def test_ade_is_shifted_once_and_keeps_a_stored_255_ignored(tmp_path):
    shutil.copytree(LOADERS / "ade20k", tmp_path / "ade")
    label = tmp_path / "ade/ADEChallengeData2016/annotations/training/ADE_train_00000001.png"
    stored = read_labels(label).copy()
    stored[0, :4] = [0, 1, 150, 255]
    write_labels(label, stored)
    assert ADE20K(tmp_path / "ade", "train")[0]["targets"]["mask"][0, :4].tolist() == [255, 0, 149, 255]
    assert len(ADE20K(tmp_path / "ade" / "ADEChallengeData2016", "train")) == 1


@pytest.mark.parametrize("cls", [Cityscapes, CamVid, ADE20K, VOC2012])
def test_a_missing_folder_is_explained(cls, tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such folder\. Expected there:\n") as caught:
        cls(tmp_path / "nowhere", "train")
    hint = f"kd-tasks data synth {cls.card} {tmp_path / 'nowhere'}"
    assert (hint in str(caught.value)) == (read_card(cls.card).twin is not None)
    with pytest.raises(UserError, match=r"no split 'trian'.* Did you mean 'train'"):
        cls(LOADERS / cls.card, "trian")
    with pytest.raises(UserError, match="Expected there"):
        cls(tmp_path, "train")


def test_data_root_is_found_below_the_data_folder(monkeypatch):
    monkeypatch.setenv("KD_TASKS_DATA", str(LOADERS))
    assert len(CamVid("camvid", "val")) == 1


def test_missing_labels_are_named(tmp_path):
    shutil.copytree(LOADERS / "cityscapes", tmp_path / "c")
    (tmp_path / "c/gtFine/train/aachen/aachen_000001_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(UserError, match=r"of 2 samples .* label of 1 is missing .*: gtFine/train/aachen/aachen_000001"):
        Cityscapes(tmp_path / "c", "train")
    (tmp_path / "c/gtFine/val").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="the label of 1 is missing"):
        Cityscapes(tmp_path / "c", "val")


def damaged_camvid(root, damage):
    for number in range(8):
        write_image(root / "train" / f"{number}.png", np.full((16, 24, 3), number, np.uint8))
        write_image(root / "trainannot" / f"{number}.png", np.full((16, 24), number, np.uint8))
    damage(root)
    return CamVid(root, "train")


def wrong_value(root):
    labels = np.zeros((16, 24), np.uint8)
    labels[3, 5] = 37
    write_image(root / "trainannot" / "5.png", labels)


def wrong_value_of_16_bits(root):
    write_image(root / "trainannot" / "5.png", np.full((16, 24), 300, np.uint16))


def wrong_size(root):
    write_image(root / "trainannot" / "5.png", np.zeros((8, 12), np.uint8))


def cut_image(root):
    path = root / "train" / "5.png"
    path.write_bytes(path.read_bytes()[:-20])


def cut_label(root):
    path = root / "trainannot" / "5.png"
    path.write_bytes(path.read_bytes()[:-20])


FAULTS = [
    (wrong_value, r"trainannot/5\.png: label value 37 \(row 3, column 5\) is not one of CamVid's: 0-11\."),
    (wrong_value_of_16_bits, r"trainannot/5\.png: label value 300 .*: 0-11\."),
    (wrong_size, r"train/5\.png has 16x24 pixels, but its label map .*trainannot/5\.png has 8x12"),
    (cut_image, r"train/5\.png: the image is truncated"),
    (cut_label, r"trainannot/5\.png: the image is truncated"),
]


def message_of(loader):
    """What a user is told. The traceback refers to itself and the loader: kept, it would hold up the workers' end."""
    try:
        list(loader)
    except UserError as error:
        error.__traceback__ = None
        return str(error)
    return "no error"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("damage", "message"), FAULTS)
def test_faulty_files_are_one_clear_message(tmp_path, damage, message, workers):
    loader = DataLoader(damaged_camvid(tmp_path / "d", damage), num_workers=workers, collate_fn=collate_samples)
    told = message_of(loader)
    assert re.search(message, told)
    assert "Traceback" not in told
    assert "\n" not in told


def test_a_transform_that_does_not_fit_names_the_file(tmp_path):
    dataset = CamVid(LOADERS / "camvid", "train", transforms=[{"type": "RandomCrop", "height": 99, "width": 9}])
    with pytest.raises(UserError, match=r"train/0001TP_006690\.png: transforms: cannot be applied"):
        dataset[0]


def epoch_of(dataset, epoch, workers, seed=0):
    sampler = EpochSampler(dataset, seed=seed)
    sampler.set_epoch(epoch)
    loader = DataLoader(
        dataset,
        batch_size=3,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate_samples,
        worker_init_fn=seed_worker if workers else None,
    )
    samples = {}
    for batch in loader:
        for place, meta in enumerate(batch["meta"]):
            samples[meta["index"]] = (batch["inputs"][place], batch["targets"]["mask"][place])
    return samples


def equal(left, right):
    return [all(torch.equal(a, b) for a, b in zip(left[i], right[i], strict=True)) for i in sorted(left)]


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_augmentation_is_the_same_with_any_number_of_workers_and_new_in_each_epoch(tmp_path):
    masks = [np.random.default_rng(i).integers(0, 5, (40, 48), dtype=np.uint8) for i in range(10)]
    dataset = ImageMaskFolder(folder(tmp_path, masks), "train", classes=list("abcde"), transforms=STANDARD)
    first = epoch_of(dataset, 0, workers=0)
    assert sorted(first) == list(range(10))
    for workers in (2, 4):
        assert all(equal(first, epoch_of(dataset, 0, workers)))
    second = epoch_of(dataset, 1, workers=2)
    assert not any(equal(first, second))
    assert all(equal(second, epoch_of(dataset, 1, workers=0)))
    assert not any(equal(first, epoch_of(dataset, 0, workers=0, seed=1)))


def test_loading_leaves_the_random_stream_of_the_main_process_alone():
    dataset = CamVid(LOADERS / "camvid", "train", transforms=[{"type": "HorizontalFlip"}])
    torch.manual_seed(0), np.random.seed(0)
    alone = torch.rand(1), np.random.rand()
    torch.manual_seed(0), np.random.seed(0)
    dataset[0]
    assert (torch.rand(1), np.random.rand()) == alone


def test_flips_move_image_and_mask_together():
    plain = CamVid(LOADERS / "camvid", "train")[0]
    flipped = CamVid(LOADERS / "camvid", "train", transforms=[{"type": "HorizontalFlip", "p": 1}])[0]
    assert torch.equal(flipped["inputs"], plain["inputs"].flip(-1))
    assert torch.equal(flipped["targets"]["mask"], plain["targets"]["mask"].flip(-1))


def test_in_testing_the_mask_stays_as_in_the_file():
    plain = CamVid(LOADERS / "camvid", "val")[0]
    resize = [{"type": "Resize", "height": 48, "width": 40}]
    item = CamVid(LOADERS / "camvid", "val", transforms=resize, test_mode=True)[0]
    assert item["inputs"].shape == (3, 48, 40)
    assert torch.equal(item["targets"]["mask"], plain["targets"]["mask"])
    assert (item["meta"]["original_size"], item["meta"]["input_size"]) == ((24, 32), (48, 40))


def test_the_standard_recipe_pads_with_ignored_and_the_mean_colour():
    augment = Augment(STANDARD[:3])
    image, mask = np.full((8, 8, 3), 9, np.uint8), np.full((8, 8), 3, np.uint8)
    for seed in range(5):
        result = augment(image, mask, seed=seed)
        padded = result["mask"] == 255
        assert result["mask"].shape == (32, 32)
        assert padded.any()
        assert (result["image"][padded] == (124, 116, 104)).all()
        assert (result["image"][~padded] == 9).all()


def scale_crop(**options):
    return Augment([{"type": "RandomScaleCrop", "size": (24, 32), **options}])


def test_scale_crop_at_factor_one_cuts_a_window():
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    mask = np.arange(3000).reshape(50, 60) % 250
    places = set()
    for seed in range(20):
        result = scale_crop(scale=(1, 1))(image, mask.astype(np.uint8), seed=seed)
        windows = [
            (top, left)
            for top in range(27)
            for left in range(29)
            if np.array_equal(image[top : top + 24, left : left + 32], result["image"])
        ]
        assert len(windows) == 1
        top, left = windows[0]
        assert np.array_equal(result["mask"], mask[top : top + 24, left : left + 32])
        places.add(windows[0])
    assert len(places) > 15


def test_scale_crop_resizes_as_opencv_does_and_pads():
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8), (5, 5), 2)
    result = scale_crop(scale=(2, 2))(image, np.ones((12, 16), np.uint8))
    reference = cv2.resize(image, (32, 24), interpolation=cv2.INTER_LINEAR)
    inner = (slice(1, -1), slice(1, -1))
    assert np.abs(result["image"][inner].astype(int) - reference[inner]).max() <= 2
    small = scale_crop(scale=(0.5, 0.5), fill=(1, 2, 3))(image, np.ones((12, 16), np.uint8), seed=4)
    assert int((small["mask"] == 1).sum()) == 6 * 8
    assert (small["image"][0, 0] == (1, 2, 3)).all() or small["mask"][0, 0] == 1


def test_scale_crop_avoids_windows_of_one_class():
    mask = np.zeros((100, 400), np.uint8)
    mask[:, 380:] = 1
    shares = []
    for max_share in (1.0, 0.75):
        augment = scale_crop(scale=(1, 1), max_share=max_share)
        masks = [augment(np.zeros((100, 400, 3), np.uint8), mask, seed=seed)["mask"] for seed in range(60)]
        shares.append(sum(m.mean() > 0 for m in masks))
    assert shares[1] > 2 * shares[0]
    for wrong in ({"size": (3,)}, {"scale": (2, 1)}, {"max_share": 0}):
        with pytest.raises(UserError, match="RandomScaleCrop"):
            scale_crop(**wrong)


def test_own_folders_pair_by_stem(tmp_path):
    masks = [np.full((6, 8), value, np.uint8) for value in (0, 1, 255)]
    root = folder(tmp_path, masks, suffix=".jpg")
    dataset = ImageMaskFolder(root, "train", classes=["a", "b"])
    assert [int(dataset[i]["targets"]["mask"][0, 0]) for i in range(3)] == [0, 1, 255]
    assert dataset.metainfo["palette"] == [[0, 0, 0], [128, 0, 0]]
    (root / "masks/train/001.png").unlink()
    with pytest.raises(UserError, match=r"masks/train/001\.png"):
        ImageMaskFolder(root, "train", classes=["a", "b"])
    with pytest.raises(UserError, match=r"neither a folder images/val nor a list val\.txt"):
        ImageMaskFolder(root, "val", classes=["a", "b"])
    write_image(root / "images/train/002.png", np.zeros((6, 8, 3), np.uint8))
    with pytest.raises(UserError, match="same stem"):
        ImageMaskFolder(root, "train", classes=["a", "b"])


def test_own_folders_with_a_list_and_a_suffix(tmp_path):
    for name in ("x", "y", "z"):
        write_image(tmp_path / "images" / f"{name}.jpg", np.zeros((4, 4, 3), np.uint8))
        write_image(tmp_path / "masks" / f"{name}_mask.png", np.zeros((4, 4), np.uint8))
    (tmp_path / "val.txt").write_text("z\nx\n")
    build = partial(ImageMaskFolder, tmp_path, classes=["a"], mask_suffix="_mask")
    assert [pair.image.stem for pair in build("val").items] == ["z", "x"]
    assert [pair.image.stem for pair in build("all").items] == ["x", "y", "z"]
    (tmp_path / "val.txt").write_text("z\nw\n")
    with pytest.raises(UserError, match=r"image of 1 is missing .*images/w"):
        build("val")


def test_black_and_white_masks_get_the_way_out(tmp_path):
    mask = np.zeros((6, 8), np.uint8)
    mask[2:4] = 255
    root = folder(tmp_path, [mask] * 3)
    with pytest.raises(UserError, match=r"label_map=\{255: 1\}"):
        ImageMaskFolder(root, "train", classes=["ground", "thing"])
    mapped = ImageMaskFolder(root, "train", classes=["ground", "thing"], label_map={255: 1})
    assert histogram(mapped[0]["targets"]["mask"]) == {"0": 32, "1": 16}
    meant = ImageMaskFolder(root, "train", classes=["ground", "thing"], label_map={})
    assert histogram(meant[0]["targets"]["mask"]) == {"0": 32, "255": 16}


def test_label_map_and_ignore_index(tmp_path):
    root = folder(tmp_path, [np.array([[0, 1, 7, 9]], np.uint8)])
    build = partial(ImageMaskFolder, root, "train", classes=["a", "b"])
    mapped = build(label_map={7: 1, 1: 0}, ignore_index=9)
    assert mapped[0]["targets"]["mask"].tolist() == [[0, 0, 1, 255]]
    with pytest.raises(UserError, match=r"label value 7 .* and 1 other values .*: 0-1, 255\. Map stored values"):
        build()[0]
    with pytest.raises(UserError, match="label_map: 7: 2"):
        build(label_map={7: 2})


def test_masks_in_colours(tmp_path):
    red, green, white = [200, 0, 0], [0, 200, 0], [255, 255, 255]
    root = folder(tmp_path, [np.array([[red, green, white, red]], np.uint8)])
    build = partial(ImageMaskFolder, root, "train", classes=["red", "green"], colour_masks=True)
    dataset = build(palette=[red, green], ignored_colours=[white])
    assert dataset[0]["targets"]["mask"].tolist() == [[0, 1, 255, 0]]
    assert dataset.metainfo["palette"] == [red, green]
    with pytest.raises(UserError, match=r"000\.png: the colour \[255, 255, 255\] .* is not in the palette"):
        build(palette=[red, green])[0]
    with pytest.raises(UserError, match="needs the palette"):
        build()
    with pytest.raises(UserError, match="one colour"):
        build(palette=[red])
    with pytest.raises(UserError, match="same colour"):
        build(palette=[red, red])


@pytest.mark.parametrize("name", ["cityscapes", "camvid", "ade20k", "voc2012"])
def test_check_holds_a_folder_against_its_card(name):
    steps = []
    report = check_dataset(name, LOADERS / name, progress=lambda split, done, total: steps.append((split, done, total)))
    assert not report.ok, "the fixture has fewer samples than the benchmark"
    splits = {"train": "training", "val": "validation"} if name == "ade20k" else {}
    for split, found in report.splits.items():
        records = expected(name)[splits.get(split, split)]
        assert found.found == len(records)
        assert not (found.faults or found.missing or found.out_of_range or found.unpaired)
        assert found.expected == read_card(name).splits[split]
        assert (split, len(records), len(records)) in steps
    assert any("WRONG number" in line for line in report.lines())


def test_check_finds_every_fault(tmp_path):
    def damage(root):
        wrong_value(root)
        (root / "trainannot" / "2.png").unlink()
        path = root / "train" / "3.png"
        path.write_bytes(path.read_bytes()[:-20])
        write_image(root / "trainannot" / "4.png", np.zeros((8, 12), np.uint8))
        write_image(root / "trainannot" / "99.png", np.zeros((16, 24), np.uint8))
        shutil.copy(root / "train" / "7.png", root / "train" / "6.png")

    with pytest.raises(UserError, match="label of 1 is missing"):
        damaged_camvid(tmp_path, damage)
    report = check_dataset("camvid", tmp_path)
    train = report.splits["train"]
    assert train.found == 8
    assert train.missing == ["trainannot/2.png"]
    assert train.unpaired == ["trainannot/99.png"]
    assert train.out_of_range == {37: ["trainannot/5.png"]}
    assert len(train.faults) == 2
    assert train.values[37] == 1
    assert report.duplicates == [["train/6.png", "train/7.png"]]
    text = "\n".join(report.lines())
    for piece in ("8 samples of 367", "label value 37 in trainannot/5.png", "truncated", "8x12", "NOT as its card"):
        assert piece in text


def test_check_of_ones_own_folder_counts_values(tmp_path):
    folder(tmp_path, [np.array([[0, 3, 255, 255]], np.uint8)])
    folder(tmp_path, [np.array([[0, 3, 3, 3]], np.uint8)], split="val")
    report = check_dataset("folder", tmp_path)
    assert report.splits["train"].values == {0: 1, 3: 1, 255: 2}
    assert report.ok
    strict = check_dataset("folder", tmp_path, options={"classes": ["a", "b"]})
    assert strict.splits["val"].out_of_range == {3: ["masks/val/000.png"]}


def test_cards_are_complete_and_wrong_ones_are_named():
    assert {"cityscapes", "camvid", "ade20k", "voc2012", "folder"} <= set(card_names())
    for name, cls in (("cityscapes", Cityscapes), ("camvid", CamVid), ("ade20k", ADE20K), ("voc2012", VOC2012)):
        card = read_card(name)
        assert card.classes == len(cls.classes) == len(cls.palette)
        assert card.plugin == "segmentation"
        assert card.licence
        assert card.prose
        assert set(card.splits) <= set(cls.splits)
    with pytest.raises(UserError, match=r"no data-set card 'camvit'.* Did you mean 'camvid'"):
        read_card("camvit")
    with pytest.raises(UserError, match="begins with YAML"):
        parse_card("x", "title: x")
    with pytest.raises(UserError, match=r"unknown key 'titel'.* Did you mean 'title'"):
        parse_card("x", "---\ntitel: x\n---\nprose")
    with pytest.raises(UserError, match="lacks plugin, dataset, layout, splits"):
        parse_card("x", "---\ntitle: x\n---\nprose")


def test_a_plain_index_counts_as_the_first_epoch_of_seed_0():
    dataset = CamVid(LOADERS / "camvid", "train", transforms=STANDARD)
    assert torch.equal(dataset[0]["inputs"], dataset[EpochIndex(0, 0, 0)]["inputs"])
    assert isinstance(dataset[EpochIndex(0, 3, 1)]["meta"]["index"], int)
    with pytest.raises(IndexError):
        dataset[1]
