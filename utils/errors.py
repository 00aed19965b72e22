"""Errors of the user's input: one sentence and exit code 2, no traceback. Errors of ours keep their traceback."""
import argparse
import sys


class InputError(ValueError):
    """Something that the user gave is wrong. The message says what came, what was expected and how to mend it."""


class StepInterrupted(InputError):
    """In the midst of a step: memory ran out, or a loader process died. The run's other processes wait for this one."""


class StoppedElsewhere(Exception):
    """Another process of the run failed, and the main one says why: this one ends without a word."""


def given_options(parser, argv=None):
    """Names of the options that `argv` (default: the command line) sets."""
    unset = object()
    names = [action.dest for action in parser._actions if action.dest != "help"]
    parsed = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(names, unset)))
    return {name for name in names if getattr(parsed, name) is not unset}


def run_command(main, parser, argv=None):
    """Parses `argv` (default: the command line), runs `main(args)` and exits with what it returns (None is 0).

    args.given is the set of options that stood on the command line: a default and a wish are not the same.
    An InputError prints one line and exits with 2, as argparse does for a wrong flag. Ctrl-C exits with 130.
    """
    args = parser.parse_args(argv)
    args.given = given_options(parser, argv)
    try:
        code = main(args)
    except InputError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        code = 2
    except StoppedElsewhere:
        code = 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped", file=sys.stderr)
        code = 130
    sys.exit(code or 0)
