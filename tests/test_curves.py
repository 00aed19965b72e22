"""Pictures and curves: whatever goes wrong with them is a warning, once for each kind, and never the end of a run."""
import errno
import json
import sys
import time
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from helpers import ROOT, TINY, call, folders, only_run, run
from utils.curves import Curves
from utils.errors import InputWarning
from utils.strengths_file import read_strengths

FULL = OSError(errno.ENOSPC, "No space left on device")
WHOLE = True  # see conftest.py


def fail(*_):
    raise FULL


@pytest.fixture
def said():
    """The sentences of the InputWarnings within the test."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sentences = []
        yield lambda: sentences + [str(w.message) for w in caught if w.category is InputWarning]


@pytest.mark.slow
def test_a_backend_of_matplotlib_that_cannot_be_used_does_not_matter(data, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "nonsense")
    printed = run("train_sparse_mask.py", "--search", *TINY, *folders(data), "--max_epoch", 1, "--exp_path", tmp_path)
    assert "warning" not in printed and (only_run(tmp_path) / "checkpoint_3.pth.tar").exists()
    monkeypatch.setenv("MPLBACKEND", "module://no_such_module.backend")
    printed = run("draw.py", only_run(tmp_path), "--out", tmp_path / "pictures")
    assert printed.count("written: ") == 3


def test_no_file_imports_pyplot():
    for file in ROOT.glob("*/*.py"):
        assert file.parent.name == "tests" or "pyplot" not in file.read_text(encoding="utf-8"), file


def test_the_users_settings_of_matplotlib_do_not_change_a_picture(tmp_path):
    import matplotlib

    from utils import drawing
    strengths = [np.full((l + 1, 2), 0.5) for l in range(3)]
    files = []
    for settings in ({}, {"text.usetex": True, "lines.linewidth": 20, "axes.grid": True, "svg.fonttype": "path"}):
        with matplotlib.rc_context(settings):
            files.append(drawing.save(drawing.draw_strengths(strengths), tmp_path / f"{len(files)}" / "a")[0])
            assert drawing.to_array(drawing.draw_strengths(strengths)).ndim == 3
            assert matplotlib.rcParams["lines.linewidth"] == settings.get("lines.linewidth", 1.5)
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("kind", ["search", "train"])
def test_a_run_goes_on_whatever_fails_in_its_pictures_and_curves(data, tmp_path, monkeypatch, kind):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)  # missing
    monkeypatch.setattr("utils.drawing.to_array", fail)
    monkeypatch.setattr("utils.run_log.colour_label", fail)
    monkeypatch.setattr("utils.curves.json", SimpleNamespace(dumps=fail))
    monkeypatch.setattr("utils.curves.connection_names", fail)
    what = ["--search"] if kind == "search" else ["--mask_path", "fcn"]
    outcome = call("train_sparse_mask.py", *what, *TINY, *folders(data), "--max_epoch", 2, "--exp_path", tmp_path)
    assert outcome.code == 0, outcome.text
    lines = [line for line in outcome.text.splitlines() if line.startswith("warning: ")]
    kinds = ["tensorboard_log", "strengths.csv", "pictures", "tensorboard.json"]
    assert sorted(lines) == sorted({line for line in lines})
    assert [any(f"without its {name}:" in line for line in lines) for name in kinds] == [True, kind == "search", True,
                                                                                         True]
    folder = only_run(tmp_path)
    assert (folder / "checkpoint_6.pth.tar").exists()
    assert all(line in (folder / "log.txt").read_text() for line in lines)


@pytest.mark.parametrize("error", [FULL, ValueError("Message too large")])
def test_an_error_in_tensorboards_thread_does_not_stop_it(tmp_path, said, error):
    """Else tensorboardX waits for ever for room in its queue."""
    curves = Curves(tmp_path)

    def full(_):
        raise error
    curves.writer.file_writer.event_writer._ev_writer._py_recordio_writer.write = full
    for step in range(50):
        curves.scalar("train/loss", 1, step)
    for _ in range(100):  # the thread is not in step with this one
        if curves.events.failure:
            break
        time.sleep(0.05)
    for _ in range(2):
        curves.flush()
    assert said() == [f"the run goes on without its tensorboard_log: {getattr(error, 'strerror', None) or error}"]
    assert len(json.loads((tmp_path / "tensorboard.json").read_text())["train/loss"]) == 50
    curves.close()


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full")
def test_a_disk_that_is_full_for_a_while_leaves_whole_lines(tmp_path, said, monkeypatch):
    curves = Curves(tmp_path)
    strengths = [np.full((l + 1, 2), 0.5) for l in range(9)]
    curves.strengths(strengths, 0)
    size = curves.strengths_file.stat().st_size
    real = open

    class Half:
        """A file whose disk is full after half of what is written."""
        def __init__(self, path, *_, **__):
            self.path = path

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def write(self, text):
            with real(self.path, "a") as file:
                file.write(text[:len(text) // 2])
            raise FULL
    monkeypatch.setattr("utils.curves.open", Half, raising=False)
    curves.strengths(strengths, 1)
    curves.strengths(strengths, 2)
    assert curves.strengths_file.stat().st_size == size
    monkeypatch.undo()
    curves.strengths(strengths, 3)
    assert read_strengths(tmp_path)[1].tolist() == [0, 3]
    assert said() == ["the run goes on without its strengths.csv: No space left on device"]
    curves.close()


def test_curves_that_cannot_be_created_or_read_back_do_not_matter(tmp_path, said):
    for name in ("tensorboard_log", "strengths.csv"):
        (tmp_path / name).touch()
    (tmp_path / "tensorboard_log").chmod(0o444)
    (tmp_path / "tensorboard.json").mkdir()
    curves = Curves(tmp_path, resume_at=3)
    curves.scalar("a", 1, 4)
    curves.image("b", np.zeros((3, 2, 2), np.uint8), 4)
    curves.flush()
    curves.close()
    assert any("tensorboard_log" in sentence for sentence in said())
