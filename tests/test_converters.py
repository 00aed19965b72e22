"""Both converters, on files made here in the formats of SBD and VOC."""
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.sparse
from PIL import Image

from deadly_tasks import always_die, die_beside, die_of_two
from helpers import call
from utils import parallel
from utils.colour_map import colour_map
from utils.errors import InputError, InputWarning
from utils.parallel import run_parallel
from VOC12 import convert_labels, convert_mat_to_png
from VOC12.colours import voc_colours
from VOC12.index_png import write_label_png
from VOC12.labels import CLASS_NAMES, VOID

INDICES = (*range(len(CLASS_NAMES)), VOID)
SCRIPTS = Path(__file__).resolve().parents[1] / "VOC12"


def make_labels(seed=0, shape=(7, 11)):
    return np.random.default_rng(seed).choice(INDICES, shape).astype(np.uint8)


def save_mat(path, labels, key="GTcls", field="Segmentation", **options):
    """A file as SBD's: a 1 x 1 struct beside other fields."""
    boundaries = np.empty((20, 1), dtype=object)
    boundaries[:] = [[scipy.sparse.csc_matrix((7, 11))]] * 20
    struct = {"Boundaries": boundaries, field: labels, "CategoriesPresent": np.array([[1, 15]])}
    scipy.io.savemat(path, {key: struct}, **options)


@pytest.fixture
def sbd(tmp_path):
    """benchmark_RELEASE with three good files."""
    folder = tmp_path / "benchmark_RELEASE"
    (folder / "dataset/cls").mkdir(parents=True)
    for seed in range(3):
        save_mat(folder / f"dataset/cls/2008_00000{seed}.mat", make_labels(seed), do_compression=seed == 1)
    return folder


def run(script, *arguments, cwd=None):
    return subprocess.run([sys.executable, SCRIPTS / script, *map(str, arguments)], capture_output=True, text=True,
                          cwd=cwd)


def assert_png(path, labels):
    with Image.open(path) as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), labels)
        assert np.array_equal(np.asarray(image.convert("RGB")), colour_map()[labels])
    assert path.read_bytes()[24] == 8  # bits a pixel


# --- convert_mat_to_png

def test_mat_to_png_and_again(sbd):
    assert convert_mat_to_png.convert_folder(sbd) == (3, 0, [])
    pngs = sorted((sbd / "dataset/cls_png").iterdir())
    assert [path.name for path in pngs] == [f"2008_00000{seed}.png" for seed in range(3)]
    for seed, path in enumerate(pngs):
        assert_png(path, make_labels(seed))
    stamps = [path.stat().st_mtime_ns for path in pngs]
    assert convert_mat_to_png.convert_folder(sbd) == (0, 3, [])
    assert [path.stat().st_mtime_ns for path in pngs] == stamps


def test_mat_finishes_what_was_interrupted(sbd):
    folder = sbd / "dataset/cls_png"
    convert_mat_to_png.convert_folder(sbd)
    whole = (folder / "2008_000000.png").read_bytes()
    (folder / "2008_000000.png").write_bytes(whole[:-20])  # cut
    (folder / "2008_000001.png").write_bytes(b"")
    leftover = folder / ".2008_000002.abc.part.png"
    leftover.write_bytes(whole[:50])
    os.utime(leftover, (1e9, 1e9))
    assert convert_mat_to_png.convert_folder(sbd) == (2, 1, [])
    assert len(list(folder.iterdir())) == 3
    assert_png(folder / "2008_000000.png", make_labels(0))
    newer = sbd / "dataset/cls/2008_000002.mat"
    save_mat(newer, make_labels(9))
    os.utime(newer, (time.time() + 5,) * 2)
    assert convert_mat_to_png.convert_folder(sbd)[0] == 1
    assert_png(folder / "2008_000002.png", make_labels(9))


@pytest.mark.parametrize("layout, given", [("benchmark_RELEASE/dataset", "."), ("benchmark_RELEASE/dataset", "*"),
                                           ("benchmark_RELEASE/dataset", "*/*"), (".", ".")])
def test_mat_in_every_layout(sbd, layout, given):
    """The archive's, seen from three folders, and torchvision's, which moves what is in `dataset` to its root."""
    root = sbd.parent
    if layout == ".":
        (sbd / "dataset/cls").rename(root / "cls")  # torchvision leaves the empty folders there
    path = root if given == "." else next(root.glob(given))
    outcome = call("VOC12/convert_mat_to_png.py", "--sbd_path", path)
    labels = (root / layout / "cls_png").resolve()
    assert outcome == (0, f"{path / labels.relative_to(path)}: 3 written, 0 already there, 0 failed")
    assert_png(labels / "2008_000001.png", make_labels(1))


@pytest.mark.parametrize("labels", [make_labels().astype(float), make_labels().astype(np.int32)])
def test_mat_number_types(tmp_path, labels):
    save_mat(tmp_path / "a.mat", labels)
    assert np.array_equal(convert_mat_to_png.read_segmentation(tmp_path / "a.mat"), labels)


def test_mat_struct_array_in_a_cell(tmp_path):
    cell = np.empty((1, 1), dtype=object)
    cell[0, 0] = {"Segmentation": make_labels()}
    scipy.io.savemat(tmp_path / "a.mat", {"GTcls": cell})
    assert np.array_equal(convert_mat_to_png.read_segmentation(tmp_path / "a.mat"), make_labels())


def test_mat_failures_are_named_and_the_others_converted(sbd):
    folder = sbd / "dataset/cls"
    good = (folder / "2008_000000.mat").read_bytes()
    save_mat(folder / "instance.mat", make_labels(), key="GTinst")
    save_mat(folder / "field.mat", make_labels(), field="Labels")
    scipy.io.savemat(folder / "array.mat", {"GTcls": make_labels()})
    (folder / "cut.mat").write_bytes(good[:len(good) // 2])
    (folder / "empty.mat").write_bytes(b"")
    (folder / "text.mat").write_bytes(b"not a matrix\n" * 100)
    (folder / "hdf.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n" + bytes(100))
    save_mat(folder / "value.mat", np.array([[0, 0, 0], [0, 21, 0]], dtype=np.uint8))
    save_mat(folder / "nan.mat", np.array([[0, np.nan]]))
    save_mat(folder / "cube.mat", np.zeros((2, 2, 2)))
    (folder / "._2008_000000.mat").write_bytes(b"a Mac's")  # no label at all

    result = run("convert_mat_to_png.py", "--sbd_path", sbd, "--workers", 2)
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    expected = {"instance": "GTcls", "field": "Segmentation", "array": "struct", "cut": "complete",
                "empty": "complete", "text": "complete", "hdf": "7.3",
                "value": "row 1, column 1 has the value 21", "nan": "nan", "cube": "(2, 2, 2)"}
    for name, word in expected.items():
        lines = [line for line in result.stderr.splitlines() if line.startswith(str(folder / f"{name}.mat: "))]
        assert len(lines) == 1 and word in lines[0], (name, lines)
    assert "3 written, 0 already there, 10 failed" in result.stdout
    assert len(list((sbd / "dataset/cls_png").iterdir())) == 3


def test_when_a_process_dies_the_others_finish_their_task(tmp_path):
    results, failures = run_parallel(die_beside, {str(n): (tmp_path, n) for n in range(20)}, "", 2)
    assert len(results) == 19 and [name for name, _ in failures] == ["0"]
    done = list(tmp_path.glob("*.done"))
    assert len(list(tmp_path.iterdir())) == 2 * len(done) >= 2 * 19


def test_when_every_process_dies_it_ends_with_one_sentence(monkeypatch):
    monkeypatch.setattr(parallel, "MOST_DEATHS", 4)
    with pytest.raises(InputError, match="4 processes in a row died, the last one over 3"):
        run_parallel(always_die, {str(n): () for n in range(100)}, "", 2)


@pytest.mark.parametrize(("tasks", "workers"), [(3, 2), (60, 2)])  # a single worker; two
def test_a_task_whose_process_dies_is_named_and_the_others_are_done(tasks, workers):
    results, failures = run_parallel(die_of_two, {str(n): (n,) for n in range(tasks)}, "", workers, may_crash=True)
    assert results == {str(n): n for n in range(tasks) if n != 2}
    assert [name for name, sentence in failures] == ["2"] and "damaged" in failures[0][1]


def test_a_mat_that_crashes_the_reader_is_named(sbd):
    """With this byte changed, scipy 1.17 reads wrong memory: sometimes that is an exception, sometimes a crash."""
    scipy.io.savemat(sbd / "dataset/cls/crash.mat", {"GTcls": {"Segmentation": np.zeros((4, 5), np.uint8)}})
    content = bytearray((sbd / "dataset/cls/crash.mat").read_bytes())
    content[265] = 20
    (sbd / "dataset/cls/crash.mat").write_bytes(content)
    result = run("convert_mat_to_png.py", "--sbd_path", sbd)
    assert result.returncode == 1 and "3 written, 0 already there, 1 failed" in result.stdout, result.stderr
    assert "crash.mat: " in result.stderr and "Traceback" not in result.stderr


def test_mat_wrong_folders(sbd, tmp_path):
    result = run("convert_mat_to_png.py", "--sbd_path", "elsewhere", cwd=tmp_path)
    assert result.returncode == 2 and "benchmark_RELEASE" in result.stderr
    assert "Traceback" not in result.stderr
    for path in (sbd / "dataset/cls").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="contains no .mat"):
        convert_mat_to_png.convert_folder(sbd)
    assert run("convert_mat_to_png.py", "--sbd_path", sbd, "--workers", "0").returncode == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_interrupt_leaves_no_half_files_and_can_be_finished(sbd):
    """One of the files is a pipe that gives nothing, so that the run is surely not over when the signal comes."""
    folder = sbd / "dataset"
    labels = make_labels()
    save_mat(folder / "cls/2009.mat", labels)
    raw = (folder / "cls/2009.mat").read_bytes()
    for number in range(1, 60):
        (folder / f"cls/2009_{number:06d}.mat").write_bytes(raw)
    pipe = folder / "cls/0000_000000.mat"  # sorted first, so a worker waits for it when others are done
    os.mkfifo(pipe)
    writing_end = os.open(pipe, os.O_RDWR)
    process = subprocess.Popen([sys.executable, SCRIPTS / "convert_mat_to_png.py", "--sbd_path", sbd, "--workers", "2"],
                               stderr=subprocess.PIPE, start_new_session=True, text=True,
                               # a job that a shell started with "&" ignores Ctrl-C, and so would this one
                               preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL))
    while process.poll() is None and len(list(folder.glob("cls_png/*.png"))) < 5:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    (folder / "whole.mat").write_bytes(raw)
    os.replace(folder / "whole.mat", pipe)  # the worker that waits opens it a second time
    os.close(writing_end)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in errors
    done = sorted((folder / "cls_png").iterdir())
    assert len(done) >= 5 and not any(path.name.startswith(".") for path in done)
    written, kept, failures = convert_mat_to_png.convert_folder(sbd, workers=2)
    assert (kept, written + kept, failures) == (len(done), len(list((folder / "cls").iterdir())), [])
    assert_png(folder / "cls_png/0000_000000.png", labels)


# --- convert_labels

def save_palette(path, labels, palette=None):
    image = Image.fromarray(labels)
    image.putpalette((colour_map() if palette is None else palette).tobytes())
    image.save(path)


@pytest.fixture
def source(tmp_path):
    """A folder with each kind of PNG of the same labels, by index."""
    folder = tmp_path / "source"
    folder.mkdir()
    labels = make_labels()
    save_palette(folder / "palette.png", labels)
    save_palette(folder / "other_palette.png", labels, colour_map()[::-1].copy())
    Image.fromarray(labels).save(folder / "grey.png")
    Image.fromarray(labels.astype(np.uint16)).save(folder / "grey16.png")
    Image.fromarray(colour_map()[labels]).save(folder / "rgb.png")
    rgba = np.dstack([colour_map()[labels], np.full(labels.shape, 255, dtype=np.uint8)])
    Image.fromarray(rgba).save(folder / "rgba.png")
    return folder


def test_every_kind_of_png(source, tmp_path):
    names = sorted(path.stem for path in source.iterdir())
    with pytest.warns(InputWarning, match="palette"):  # two palettes contradict each other
        assert convert_labels.convert_folder(source, names, tmp_path / "out") == (len(names), 0, [])
    for name in names:
        assert_png(tmp_path / f"out/{name}.png", make_labels())
    assert convert_labels.convert_folder(source, names, tmp_path / "out") == (0, len(names), [])


def test_few_bits_a_pixel(tmp_path):
    labels = np.array([[0, 1, 1, 0], [1, 1, 0, 0]], dtype=np.uint8)
    Image.fromarray(labels.astype(bool)).save(tmp_path / "one_bit.png")
    image = Image.fromarray(labels)
    image.putpalette([0, 0, 0, 128, 0, 0])
    image.save(tmp_path / "palette_bit.png", bits=1)
    assert (tmp_path / "palette_bit.png").read_bytes()[24] == 1
    assert convert_labels.convert_folder(tmp_path, ["one_bit", "palette_bit"], tmp_path / "out") == (2, 0, [])
    for name in ("one_bit", "palette_bit"):
        assert_png(tmp_path / f"out/{name}.png", labels)


def test_all_22_colours_and_no_other(tmp_path):
    labels = np.array([INDICES], dtype=np.uint8)
    Image.fromarray(colour_map()[labels]).save(tmp_path / "all.png")
    assert np.array_equal(convert_labels.read_source(tmp_path / "all.png"), labels)
    for label in range(21, 255):  # VOC's map has more colours, but these are no classes
        Image.fromarray(colour_map()[[[0, label]]]).save(tmp_path / "one.png")
        with pytest.raises(InputError, match="row 0, column 1"):
            convert_labels.read_source(tmp_path / "one.png", voc_colours(), 21)


def test_labels_command(source, tmp_path):
    wrong = colour_map()[make_labels()]
    wrong[4, 6] = (1, 2, 3)
    Image.fromarray(wrong).save(source / "wrong.png")
    Image.fromarray(np.full((2, 2), 21, dtype=np.uint8)).save(source / "value.png")
    (source / "cut.png").write_bytes((source / "rgb.png").read_bytes()[:-30])
    Image.fromarray(wrong).save(source / "jpeg.png", format="JPEG")
    names = b"\xef\xbb\xbfrgb\r\nwrong\r\nabsent\r\n\r\nvalue\r\ncut\r\njpeg\r\npalette\r\n"
    (tmp_path / "list.txt").write_bytes(names)
    result = run("convert_labels.py", "source", "list.txt", "out", "--n_class", "21", cwd=tmp_path)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    lines = {line.split(":")[0]: line for line in result.stderr.splitlines() if line.startswith("source")}
    expected = {"wrong": "row 4, column 6 has the colour (1, 2, 3)", "absent": "no such file",
                "value": "has the value 21", "cut": "cannot be read", "jpeg": "none of VOC's 22"}
    assert set(lines) == {os.path.join("source", f"{name}.png") for name in expected}
    assert all(word in lines[os.path.join("source", f"{name}.png")] for name, word in expected.items())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["palette.png", "rgb.png"]

    Image.fromarray(colour_map()[make_labels()]).save(source / "wrong.png")
    (tmp_path / "list.txt").write_text("rgb\nwrong\n")
    again = run("convert_labels.py", "source", "list.txt", "out", "--n_class", "21", cwd=tmp_path)
    assert again.returncode == 0 and "1 written, 1 already there, 0 failed" in again.stdout


def test_labels_wrong_arguments(source, tmp_path):
    (tmp_path / "list.txt").write_text("rgb\n")
    before = (source / "rgb.png").read_bytes()
    for arguments, word in (((source, "list.txt", source), "same folder"), (("none", "list.txt", "out"), "not exist"),
                            ((source, "none.txt", "out"), "not exist"), ((source, "list.txt", "list.txt"), "list.txt")):
        result = run("convert_labels.py", *arguments, cwd=tmp_path)
        assert result.returncode == 2 and word in result.stderr and "Traceback" not in result.stderr
    assert (source / "rgb.png").read_bytes() == before


def test_colour_output_of_an_older_run_is_replaced(source, tmp_path):
    (tmp_path / "out").mkdir()
    Image.fromarray(colour_map()[make_labels()]).save(tmp_path / "out/rgb.png")  # whole and newer, but no indices
    write_label_png(tmp_path / "out/palette.png", make_labels())
    assert convert_labels.convert_folder(source, ["rgb", "palette"], tmp_path / "out") == (1, 1, [])
    assert_png(tmp_path / "out/rgb.png", make_labels())


def test_a_bug_is_not_taken_for_a_wrong_file(source, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError
    monkeypatch.setattr(convert_labels, "read_source", broken)
    with pytest.raises(ZeroDivisionError):
        convert_labels.convert_folder(source, ["rgb"], tmp_path / "out")
