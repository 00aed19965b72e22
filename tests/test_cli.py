"""What surrounds a command: options that were given, sentences with their option, streams that disappear; resuming."""
import argparse
import io
import os
import shlex
import subprocess
import sys
import warnings

import numpy as np
import pytest

from helpers import ROOT, TINY, folders, only_run
from utils.cli import DetachableStream, explain, parse, warnings_as_lines
from utils.colour_map import colour_map
from utils.errors import InputError, InputWarning
from utils.resume import describe_changes, merge_settings
from VOC12.index_png import write_label_png


@pytest.fixture
def parser():
    parser = argparse.ArgumentParser(prog="test.py")
    parser.add_argument("file")
    parser.add_argument("--name", default="x")
    parser.add_argument("-n", "--n_worker", type=int, default=2)
    parser.add_argument("--flag", action="store_true")
    return parser


def test_given_are_the_options_that_stood_there_even_with_their_default(parser):
    args = parse(parser, ["--n_worker", "2", "f"])
    assert args.given == {"file", "n_worker"} and args.n_worker == 2 and args.name == "x" and args.flag is False
    for argv, words in ((["f", "--name", ""], "--name is empty"), ([""], "file is empty")):
        with pytest.raises(InputError, match=words):
            parse(parser, argv)


@pytest.mark.parametrize("message, about, line", [
    ("the number is -1;\ngive 0", "num_workers", "the number is -1; give 0 (--n_worker)"),
    ("the number is -1", "n_worker", "the number is -1 (--n_worker)"),
    ("--n_worker is -1", "num_workers", "--n_worker is -1"),
    ("the depth is 0", "depth", "the depth is 0"),  # no option of this command
    ("the file is gone", "file", "the file is gone"),
    ("it is wrong", None, "it is wrong")])
def test_a_sentence_names_the_option_that_it_is_about(parser, message, about, line):
    assert explain(InputError(message, about), parser) == line


def test_a_stream_whose_reader_is_gone_continues_into_nothing():
    read, write = os.pipe()
    stream = DetachableStream(os.fdopen(write, "w"))
    os.close(read)
    for _ in range(2):
        assert stream.write("text") == 4
        stream.flush()
    assert isinstance(stream.failure, BrokenPipeError)
    stream.close()


def test_a_stream_escapes_what_it_cannot_print():
    buffer = io.BytesIO()
    stream = DetachableStream(io.TextIOWrapper(buffer, encoding="ascii"))
    stream.write("mIoU ≥ 1")
    stream.flush()
    assert buffer.getvalue() == b"mIoU \\u2265 1" and stream.failure is None


DEFAULTS = {"lr": 0.1, "seed": 0, "n_worker": 2, "connection": "conv1x1"}


def test_a_resumed_run_has_its_own_settings_but_for_those_that_may_change():
    stored = {"lr": 0.5, "seed": 7, "n_worker": 4, "an_option_of_old": 1}
    merged = merge_settings(stored, {"n_worker": 8, "lr": 0.2, "seed": 7}, DEFAULTS)
    assert merged == {"lr": 0.2, "seed": 7, "n_worker": 8, "connection": "conv1x1"}
    assert describe_changes(merge_settings(stored, {}, DEFAULTS), merged) == "lr 0.5 -> 0.2, n_worker 4 -> 8"
    with pytest.raises(InputError, match="seed was 7, not 1; leave the option out, or start a new run: run 1") as error:
        merge_settings(stored, {"seed": 1}, DEFAULTS, lambda changes: f"run {changes['seed']}")
    assert error.value.about == "seed"
    with pytest.raises(InputError, match="connection was conv1x1, not own:part"):  # a run from before the option
        merge_settings(stored, {"connection": "own:part"}, DEFAULTS)


def test_an_input_warning_is_one_line_and_other_warnings_stay(capsys):
    lines = []
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        with warnings_as_lines(lines.append):
            warnings.warn("the list\nis odd", InputWarning, stacklevel=1)
            warnings.warn("the list\nis odd", InputWarning, stacklevel=1)
            with warnings_as_lines():
                warnings.warn("to the screen", InputWarning, stacklevel=1)
            warnings.warn("a bug of ours", RuntimeWarning, stacklevel=1)
    assert lines == ["warning: the list is odd"] * 2
    assert capsys.readouterr().err == "warning: to the screen\n"
    assert [str(warning.message) for warning in others] == ["a bug of ours"]


@pytest.mark.skipif(os.name != "posix", reason="a shell's 2>&-")
@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_a_command_does_without_a_stream_that_is_closed(tmp_path, closed):
    write_label_png(tmp_path / "a.png", np.zeros((4, 4), np.uint8), colour_map())
    names = tmp_path / "list.txt"
    names.write_text("a\n")
    command = shlex.join([sys.executable, "VOC12/convert_labels.py", *map(str, (tmp_path, names, tmp_path / "out"))])
    result = subprocess.run(["sh", "-c", f"{command} {closed}"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and (tmp_path / "out" / "a.png").exists(), result.stderr
    assert "Traceback" not in result.stderr and ("written" in result.stdout) == (closed == "2>&-")


@pytest.mark.skipif(os.name != "posix", reason="a shell's 2>&-")
def test_a_run_does_without_standard_error(data, tmp_path):
    """Its loader processes and C libraries too: what they print must not end up in a file that took its number."""
    command = shlex.join([sys.executable, "train_sparse_mask.py", "--mask_path", "fcn",
                          *map(str, [*TINY, *folders(data)]), "--max_epoch", "1", "--n_worker", "1", "--exp_path",
                          str(tmp_path)])
    result = subprocess.run(["sh", "-c", f"{command} <&- 2>&-"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and "done: " in result.stdout
    assert (only_run(tmp_path) / "checkpoint_3.pth.tar").exists()


def test_a_closed_stream_is_replaced_for_c_libraries_too():
    program = ("import os, sys\nfrom utils.cli import replace_closed_streams\nreplace_closed_streams()\n"
               "assert [os.get_inheritable(n) for n in range(3)] == [True] * 3\n"
               "assert open(os.devnull).fileno() > 2\n"
               "os.write(2, b'x'), os.write(1, b'x'), os.read(0, 1), print('y'), print('y', file=sys.stderr)\n")
    subprocess.run(["sh", "-c", shlex.join([sys.executable, "-c", program]) + " <&- >&- 2>&-"], cwd=ROOT, check=True)
