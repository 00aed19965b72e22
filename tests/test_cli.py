"""What surrounds a command: options that were given, sentences with their option, streams that disappear; resuming."""
import argparse
import io
import os
import warnings

import pytest

from utils.cli import DetachableStream, explain, parse, warnings_as_lines
from utils.errors import InputError, InputWarning
from utils.resume import merge_settings


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


DEFAULTS = {"lr": 0.1, "n_worker": 2, "connection": "conv1x1"}


def test_a_resumed_run_has_its_own_settings_but_for_those_that_may_change():
    stored = {"lr": 0.5, "n_worker": 4, "an_option_of_old": 1}
    assert merge_settings(stored, {"n_worker": 8, "lr": 0.5}, DEFAULTS) == \
        {"lr": 0.5, "n_worker": 8, "connection": "conv1x1"}
    with pytest.raises(InputError, match="lr was 0.5, not 0.1") as error:
        merge_settings(stored, {"lr": 0.1}, DEFAULTS)
    assert error.value.about == "lr"
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
