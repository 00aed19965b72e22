"""Errors of the user's input: one sentence and exit code 2, no traceback. Errors of ours keep their traceback."""
import argparse
import gc
import os
import sys
import traceback


class InputError(ValueError):
    """Something that the user gave is wrong. The message says what came, what was expected and how to mend it."""


class StepInterrupted(InputError):
    """In the midst of a step: memory ran out, or a loader process died. The run's other processes wait for this one."""


class StoppedElsewhere(Exception):
    """Another process of the run failed, and the main one says why: this one ends without a word."""


def first_line(error, limit=200):
    """The first line of another library's message, not longer than `limit`: what fits into a sentence of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:limit]


def given_options(parser, argv=None):
    """Names of the options that `argv` (default: the command line) sets. Raises InputError for an empty value.

    That is what a shell makes of a variable that is not set: `--mask_path "$MASK"` must not pass for no mask at all.
    (Where a flag without a value means an empty one, the two cannot be told apart.)
    """
    unset = object()
    names = [action.dest for action in parser._actions if action.dest != "help"]
    parsed = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(names, unset)))
    for action in parser._actions:
        value = getattr(parsed, action.dest, None)
        if "" in (value if isinstance(value, list) else [value]) and action.const != "":
            raise InputError(f"{'/'.join(action.option_strings) or action.dest} is empty; give a value or leave it out")
    return {name for name in names if getattr(parsed, name) is not unset}


class Screen:
    """Standard output or error that goes on, to nowhere, when nobody reads it any more or its disk is full.

    A run must not end because the `tee` behind it did, as when Ctrl-C ends both.
    """

    def __init__(self, stream):
        self.stream, self.failure = stream, None
        if hasattr(stream, "reconfigure"):  # where only ASCII can be printed: better an escape than no output
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        self.attempt(self.stream.write, text)
        return len(text)

    def flush(self):
        self.attempt(self.stream.flush)

    def attempt(self, method, *arguments):
        try:
            method(*arguments)
        except OSError as error:
            self.failure = error
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        except RuntimeError as error:
            if "reentrant" not in str(error):  # a signal's handler printed in the midst of printing
                raise


def run_command(main, parser, argv=None):
    """Parses `argv` (default: the command line), runs `main(args)` and exits with what it returns (None is 0).

    args.given is the set of options that stood on the command line: a default and a wish are not the same.
    An InputError prints one line and exits with 2, as argparse does for a wrong flag. Ctrl-C exits with 130, and what
    could not print all that it had to say with 1.
    """
    args = parser.parse_args(argv)
    several = os.environ.get("WORLD_SIZE", "1") != "1"  # processes of torchrun
    sys.stdout, sys.stderr = Screen(sys.stdout), Screen(sys.stderr)
    try:
        args.given = given_options(parser, argv)
        code = main(args)
    except InputError as error:
        print(f"{parser.prog}: error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        code = 2
    except StoppedElsewhere:
        code = 2
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":  # of torchrun's processes one
            print(f"{parser.prog}: stopped", file=sys.stderr)
        code = 130
    except Exception:
        if not several:
            raise
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    lost = sys.stdout.failure
    if lost and not isinstance(lost, BrokenPipeError):  # a pipe's reader knows that it left
        print(f"{parser.prog}: error: not all output could be written: {lost.strerror}", file=sys.stderr)
    code = code or (1 if lost else 0)
    if several:
        # Of gloo's threads, which live on, one that lets go of a tensor while Python ends aborts the process (1 of 100
        # searches) or keeps it for ever. So Python does not end, and what must be cleaned up is cleaned up here.
        gc.collect()  # the loaders' processes
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
