"""What surrounds a command: parsing, exit codes, and an output that may disappear while the command runs."""
import argparse
import contextlib
import gc
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from tqdm import tqdm

from utils.errors import InputError, InputWarning, StoppedElsewhere

# Parameters of functions whose option has another name.
OPTION_NAMES = {"num_classes": "n_class", "num_workers": "n_worker", "threshold": "thres", "backbone": "backbone_name",
                "pretrained": "pretrained_model", "connectivity": "mask_path", "regularizer": "sparse_loss",
                "sparse_weight": "sparse", "dtype": "type", "device": "gpu", "compiled": "compile"}


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options in `argv` (default: the command line), with `given`: the set of those that stood there.

    A default and a choice of the user are not the same. Raises InputError for an empty value: that is what a shell
    makes of a variable that is not set, and `--mask_path "$MASK"` must not mean "no mask". (Where a flag without a
    value means an empty one, the two cannot be distinguished.)
    """
    args = parser.parse_args(argv)
    unset = object()
    names = [action.dest for action in parser._actions if action.dest != "help"]
    parsed = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(names, unset)))
    for action in parser._actions:
        value = getattr(parsed, action.dest, None)
        if "" in (value if isinstance(value, list) else [value]) and action.const != "":
            raise InputError(f"{'/'.join(action.option_strings) or action.dest} is empty; give a value or leave it out")
    return argparse.Namespace(**vars(args), given={name for name in names if getattr(parsed, name) is not unset})


def explain(error: InputError, parser: argparse.ArgumentParser) -> str:
    """The error in one line, with the command's option for the parameter that it is about."""
    message = " ".join(str(error).splitlines())
    abouts = error.about if isinstance(error.about, tuple) else (error.about,)
    names = [OPTION_NAMES.get(about, about) for about in abouts]
    options = [action.option_strings[-1] for name in names for action in parser._actions
               if action.dest == name and action.option_strings and action.option_strings[-1] not in message]
    return message + (f" ({', '.join(options)})" if options else "")


class DetachableStream:
    """Standard output or error that continues, into os.devnull, when its reader is gone or its disk is full.

    A run must not end because the `tee` behind it did, as when Ctrl-C ends both.
    """

    def __init__(self, stream: TextIO):
        self.stream, self.failure = stream, None
        if hasattr(stream, "reconfigure"):  # where only ASCII can be printed: better an escape than no output
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self._attempt(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._attempt(self.stream.flush)

    def _attempt(self, method, *arguments):
        try:
            method(*arguments)
        except OSError as error:
            self.failure = error
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        except RuntimeError as error:
            if "reentrant" not in str(error):  # a signal's handler printed while the program was printing
                raise


def replace_closed_streams() -> None:
    """Opens os.devnull in the place of a standard stream that is closed, as by a shell's `2>&-`.

    Python has None for it. And the next file that is opened would get its number, with what C libraries print there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)  # by processes that this one starts
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))


@contextlib.contextmanager
def warnings_as_lines(write: Callable[[str], None] = lambda line: tqdm.write(line, file=sys.stderr)) -> Iterator[None]:
    """Within it every InputWarning becomes a line, "warning: ...", for `write`; other warnings appear as before."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_line(message, category, *where):
            if issubclass(category, InputWarning):
                write(f"warning: {' '.join(str(message).splitlines())}")
            else:
                show(message, category, *where)

        warnings.simplefilter("always", InputWarning)
        warnings.filterwarnings("ignore", "Image size .* exceeds limit")  # Pillow's, from 89 million pixels up
        warnings.showwarning = show_line
        yield


def run_command(main: Callable[[argparse.Namespace], int | None], parser: argparse.ArgumentParser,
                argv: Sequence[str] | None = None) -> None:
    """Parses `argv` (see `parse`), runs `main(args)` and exits with what it returns (None is 0).

    An InputError prints one line and exits with 2, as argparse does for a wrong flag. Ctrl-C exits with 130, and a
    command whose standard output was lost with 1; one that was started without a standard stream does without it.
    """
    replace_closed_streams()
    several = os.environ.get("WORLD_SIZE", "1") != "1"  # processes of torchrun
    sys.stdout, sys.stderr = DetachableStream(sys.stdout), DetachableStream(sys.stderr)
    try:
        with warnings_as_lines():
            code = main(parse(parser, argv))
    except InputError as error:
        print(f"{parser.prog}: error: {explain(error, parser)}", file=sys.stderr)
        code = 2
    except StoppedElsewhere:
        code = 2
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":  # one of torchrun's processes
            print(f"{parser.prog}: stopped", file=sys.stderr)
        code = 130
    except Exception:
        if not several:
            raise
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    lost = sys.stdout.failure
    if lost and not isinstance(lost, BrokenPipeError):  # the reader of a pipe knows that it left
        print(f"{parser.prog}: error: not all output could be written: {lost.strerror}", file=sys.stderr)
    code = code or (1 if lost else 0)
    if several:
        # When one of gloo's threads, which outlive the run, releases a tensor while Python ends, the process aborts
        # (1 of 100 searches) or hangs. So Python does not end, and what has to be cleaned up is cleaned up here.
        gc.collect()  # the loader processes
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
