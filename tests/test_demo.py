"""The drawn dataset: its layout, its scenes, and that the same arguments give the same files; parts of the walk."""
import json
import os

import numpy as np
import pytest
import scipy.io
from PIL import Image

from demo import draw_demo, walk
from demo.draw_demo import draw_dataset, image_name, split_lists
from demo.objects import OBJECTS
from demo.scenes import MEADOW, MENU, ROAD, STUBBLE, WATER, draw_scene, void_border
from utils.cli import run_command
from utils.colour_map import colour_map
from utils.errors import InputError
from VOC12.labels import CLASS_NAMES, VOID

PAIRS = (("boat", WATER, "car", ROAD), ("sheep", MEADOW, "cow", STUBBLE))
SMALL = {"n_train": 8, "n_val": 4, "size": 48, "workers": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    draw_dataset(root, **SMALL)
    return root


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def names(path):
    return path.read_text().split()


def test_layout(root):
    sbd, voc = root / "benchmark_RELEASE" / "dataset", root / "VOCdevkit" / "VOC2012"
    in_sbd = set(names(sbd / "train.txt")) | set(names(sbd / "val.txt"))
    for folder, suffix in (("img", ".jpg"), ("cls", ".mat"), ("inst", ".mat")):
        assert {path.name for path in (sbd / folder).iterdir()} == {name + suffix for name in in_sbd}
    lists = voc / "ImageSets" / "Segmentation"
    in_voc = set(names(lists / "trainval.txt"))
    assert in_voc == set(names(lists / "train.txt")) | set(names(lists / "val.txt"))
    for folder, suffix in (("JPEGImages", ".jpg"), ("SegmentationClass", ".png"), ("SegmentationObject", ".png")):
        assert {path.name for path in (voc / folder).iterdir()} == {name + suffix for name in in_voc}
    for name in in_sbd & in_voc:
        assert (sbd / "img" / f"{name}.jpg").read_bytes() == (voc / "JPEGImages" / f"{name}.jpg").read_bytes()


def test_labels_of_both_datasets(root):
    sbd, voc = root / "benchmark_RELEASE" / "dataset", root / "VOCdevkit" / "VOC2012"
    both = sorted({path.stem for path in (sbd / "cls").iterdir()} &
                  {path.stem for path in (voc / "SegmentationClass").iterdir()})
    assert both
    for name in both:
        with Image.open(sbd / "img" / f"{name}.jpg") as image:
            shape = image.size[::-1]
            assert image.mode == "RGB" and max(shape) == 48
        struct = scipy.io.loadmat(sbd / "cls" / f"{name}.mat")["GTcls"][0, 0]
        labels = struct["Segmentation"]
        assert labels.dtype == np.uint8 and labels.shape == shape and labels.max() < len(CLASS_NAMES)
        assert struct["CategoriesPresent"].ravel().tolist() == np.setdiff1d(labels, [0]).tolist()
        assert struct["Boundaries"].shape == (20, 1)
        for label in struct["CategoriesPresent"].ravel().astype(int):
            edge = struct["Boundaries"][label - 1, 0].toarray() > 0
            assert edge.any() and (labels[edge] == label).all()
        objects = scipy.io.loadmat(sbd / "inst" / f"{name}.mat")["GTinst"][0, 0]
        numbers, categories = objects["Segmentation"], objects["Categories"].ravel()
        assert sorted(np.unique(np.append(numbers, 0))) == list(range(len(categories) + 1))
        assert (np.append(0, categories)[numbers] == labels).all()

        with Image.open(voc / "SegmentationClass" / f"{name}.png") as image:
            assert image.mode == "P"
            assert image.getpalette() == colour_map().ravel().tolist()
            indices = np.asarray(image)
        kept = indices != VOID
        assert (indices[kept] == labels[kept]).all() and 0 < (~kept).mean() < 0.5
        with Image.open(voc / "SegmentationObject" / f"{name}.png") as image:
            assert ((np.asarray(image) == VOID) == ~kept).all()


@pytest.mark.parametrize("n_train, n_val", [(8, 4), (9, 5), (160, 40), (31, 7)])
def test_sets_overlap_as_the_real_ones(n_train, n_val):
    lists = {key: set(value) for key, value in split_lists(n_train, n_val).items()}
    sbd = lists["SBD", "train"] | lists["SBD", "val"]
    train, val = lists["VOC", "train"], lists["VOC", "val"]
    assert len(val) == n_val and len((sbd | train) - val) == n_train
    assert not train & val and not lists["SBD", "train"] & lists["SBD", "val"]
    assert lists["VOC", "trainval"] == train | val
    # In both, in SBD only, in VOC only: every case of the joining occurs, for train and for val.
    for other in (train, val):
        assert other & sbd and other - sbd
    assert sbd - train - val and lists["SBD", "val"]
    assert all(value == sorted(value) for value in split_lists(n_train, n_val).values())


def test_names_are_unique():
    assert len({image_name(i) for i in range(1000)}) == 1000
    assert image_name(1) == "2008_000002"


def test_a_second_run_gives_the_same_bytes_and_completes_what_is_missing(root, tmp_path):
    first = contents(root)
    draw_dataset(tmp_path, **SMALL)
    for path in (tmp_path / "benchmark_RELEASE" / "dataset" / "cls").iterdir():
        path.unlink()
    draw_dataset(tmp_path, **{**SMALL, "workers": 2})
    assert contents(tmp_path) == first
    assert json.loads(first[draw_demo.MARKER]) == {"n_train": 8, "n_val": 4, "size": 48, "seed": 0}


def test_scene_is_a_function_of_seed_index_and_size():
    first, again = draw_scene(3, 5, 40), draw_scene(3, 5, 40)
    assert (first.image == again.image).all() and (first.instances == again.instances).all()
    for other in (draw_scene(4, 5, 40), draw_scene(3, 6, 40)):
        assert other.image.shape != first.image.shape or (other.image != first.image).any()


def test_refuses_what_it_did_not_draw(root, tmp_path):
    with pytest.raises(InputError, match="other arguments"):
        draw_dataset(root, **{**SMALL, "seed": 1})
    (tmp_path / "VOCdevkit").mkdir()
    with pytest.raises(InputError, match="not drawn by this program"):
        draw_dataset(tmp_path, **SMALL)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("wrong", [{"n_train": 7}, {"n_val": 3}, {"size": 31}, {"size": 4000},
                                   {"seed": -1}])
def test_wrong_numbers(wrong, tmp_path, capsys):
    argv = ["--root", str(tmp_path / "new")]
    for name, value in wrong.items():
        argv += [f"--{name}", str(value)]
    with pytest.raises(SystemExit) as stop:
        run_command(draw_demo.main, draw_demo.build_parser(), argv)
    assert stop.value.code == 2 and str(*wrong.values()) in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_too_many_images_for_six_digits(tmp_path):
    with pytest.raises(InputError, match="too many"):
        draw_dataset(tmp_path, n_train=10**6)


@pytest.mark.parametrize("first, first_ground, second, second_ground", PAIRS)
def test_pairs_differ_by_their_ground_alone(first, first_ground, second, second_ground):
    draw, width = OBJECTS[CLASS_NAMES.index(first)]
    assert OBJECTS[CLASS_NAMES.index(second)] == (draw, width)
    one, other = (draw(np.random.default_rng(7), 90) for _ in range(2))
    assert (one.rgb == other.rgb).all() and (one.mask == other.mask).all()
    for name, ground in ((first, first_ground), (second, second_ground)):
        assert [place for place, menu in MENU.items() if name in menu] == [ground]


def test_statistics():
    scenes = [draw_scene(0, index, 64) for index in range(40)]
    present = {label: np.mean([(scene.classes == label).any() for scene in scenes]) for label in OBJECTS}
    assert min(present.values()) >= 0.25, present
    assert 0.55 < np.mean([(scene.classes == 0).mean() for scene in scenes]) < 0.75
    assert set(np.unique(np.concatenate([scene.classes.ravel() for scene in scenes]))) == {0, *OBJECTS}
    for first, _, second, _ in PAIRS:  # their own pixels have one distribution: the mean colours are close
        one, other = (np.concatenate([scene.image[scene.classes == CLASS_NAMES.index(name)] for scene in scenes])
                      for name in (first, second))
        assert np.abs(one.mean(axis=0) - other.mean(axis=0)).max() < 25


def test_void_border_is_outside_and_one_pixel_wide():
    instances = np.zeros((7, 8), dtype=np.uint8)
    instances[2:5, 2:4], instances[2:5, 4:6] = 1, 2
    labels = np.where(instances > 0, np.uint8(9), np.uint8(0))
    void = void_border(labels, instances) == VOID
    expected = np.zeros_like(void)
    expected[1:6, 1:7] = True
    expected[2:5, 2], expected[2:5, 4:6] = False, False
    assert (void == expected).all()
    assert not (void_border(np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)) == VOID).any()


def test_thin_parts_stay_whole():
    draw, _ = OBJECTS[CLASS_NAMES.index("bicycle")]
    mask = draw(np.random.default_rng(0), 150).mask
    assert 0.15 < mask.mean() < 0.5  # rings and bars, not a filled box


def test_the_walk_takes_the_newest_run_and_its_last_checkpoint(tmp_path):
    for age, run in enumerate(("new", "old")):
        (tmp_path / run).mkdir()
        for name in ("checkpoint_20.pth.tar", "checkpoint_100.pth.tar", "checkpoint_best.pth.tar"):
            (tmp_path / run / name).touch()
        os.utime(tmp_path / run, (1e9 - age, 1e9 - age))
    assert walk.newest_run(tmp_path) == (tmp_path / "new", tmp_path / "new" / "checkpoint_100.pth.tar")


def test_the_walk_prints_a_command_and_stops_when_it_fails(capsys):
    assert "usage: prepare.py" in walk.run("VOC12/prepare.py", "--help")
    with pytest.raises(InputError, match="exit code 2: python VOC12/prepare.py --root"):
        walk.run("VOC12/prepare.py", "--root")
    assert "$ python VOC12/prepare.py --help" in capsys.readouterr().out
