"""Progress where no terminal is: whole lines, one a minute and one at the end; on a terminal tqdm's bar."""
import io
import re
import sys

import pytest
from tqdm import tqdm

from helpers import ROOT, TINY, folders, run
from utils.progress import ProgressLines, progress_bar


class Clock:
    """Seconds that pass when a test says so."""
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def lines():
    """(a function that makes ProgressLines, a function that returns what they wrote so far, their clock)."""
    clock, file = Clock(), io.StringIO()

    def written():
        text = file.getvalue()
        assert "\r" not in text and (not text or text.endswith("\n"))
        return text.splitlines()
    return lambda *args, **options: ProgressLines(*args, file=file, clock=clock, **options), written, clock


def test_a_line_a_minute_and_one_at_the_end(lines):
    make, written, clock = lines
    with make(total=100, desc="train", initial=10) as bar:
        for i in range(90):
            clock.now += 2.5
            bar.set_postfix(loss=f"{i}", mIoU="1.0%", lr="0.1")
            bar.update()
            assert len(written()) == (i + 1) // 24
    assert written() == ["train:  34%| 34/100 [01:00<02:45,  2.50s/it, loss=23, mIoU=1.0%, lr=0.1]",
                         "train:  58%| 58/100 [02:00<01:45,  2.50s/it, loss=47, mIoU=1.0%, lr=0.1]",
                         "train:  82%| 82/100 [03:00<00:45,  2.50s/it, loss=71, mIoU=1.0%, lr=0.1]",
                         "train: 100%| 100/100 [03:45<00:00,  2.50s/it, loss=89, mIoU=1.0%, lr=0.1]"]


def test_a_line_where_it_is_asked_for_and_none_twice(lines):
    make, written, clock = lines
    with make(total=3, desc="train") as bar:
        bar.refresh()
        assert not written()  # nothing is done yet
        for _ in range(3):
            clock.now += 1
            bar.update()
            bar.refresh()
            bar.refresh()
    assert [line[:14] for line in written()] == ["train:  33%| 1", "train:  67%| 2", "train: 100%| 3"]


def test_a_line_a_minute_while_only_the_figures_change(lines):
    make, written, clock = lines
    bar = make(total=2, desc="compare")
    for running in ("a 1 %", "a 2 %", "a 2 %", "a 3 %"):
        clock.now += 40
        bar.set_postfix(running=running)
        bar.update(0)
    assert [line.rpartition(", ")[2] for line in written()] == ["running=a 2 %]", "running=a 3 %]"]


def test_over_items_bytes_and_an_unknown_total(lines):
    make, written, clock = lines
    assert list(make("abc", unit="file")) == ["a", "b", "c"]
    bar = make(total=None, desc="x.tar", unit="B", unit_scale=True, unit_divisor=1024)
    clock.now += 60
    bar.update(3 << 20)
    bar.close()
    assert list(make(range(3), leave=False)) == list(make(range(3), disable=True)) == [0, 1, 2] and list(make([])) == []
    assert [re.sub(r" \[.*", "", line) for line in written()] == ["100%| 3/3", "x.tar: | 3.00M/?"]


def test_what_is_done_is_said_where_a_loop_ends_early(lines):
    make, written, _ = lines
    with pytest.raises(ZeroDivisionError):
        for item in make(range(5, -1, -1)):
            1 / (item - 3)
    assert [line[:10] for line in written()] == [" 33%| 2/6 "]


def test_a_terminal_has_tqdms_bar_and_a_stream_that_is_closed_nothing(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_bar(total=2, desc="train") as bar:
        assert isinstance(bar, tqdm)
        bar.update()
    assert "\rtrain:  50%|" in sys.stderr.getvalue()
    monkeypatch.setattr(sys, "stderr", None)
    assert list(progress_bar(range(3))) == [0, 1, 2]


def test_a_run_in_a_file_has_a_line_an_epoch(data, tmp_path):
    printed = run("train_sparse_mask.py", "--mask_path", "fcn", *TINY, *folders(data), "--max_epoch", 2, "--exp_path",
                  tmp_path)
    assert "\r" not in printed
    shown = [line for line in printed.splitlines() if "%|" in line]
    line = r"train: +\d+%\| (\d/6) \[\d\d:\d\d<\d\d:\d\d, .*(?:it/s|s/it), loss=[\d.]+, mIoU=[\d.]+%, lr=[\d.]+\]"
    assert [re.fullmatch(line, text)[1] for text in shown] == ["3/6", "6/6"]


def test_no_bar_goes_round_progress_bar():
    """A bar of tqdm's own would fill a log with frames."""
    files = [path for folder in (".", "models", "VOC12", "utils", "demo", "benchmarks") for path in
             (ROOT / folder).glob("*.py") if path.name != "progress.py"]
    assert len(files) > 50
    assert not [path.name for path in files if re.search(r"\b(tqdm|trange)\(", path.read_text(encoding="utf-8"))]
