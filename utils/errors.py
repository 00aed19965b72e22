"""Errors of the user's input: one sentence and exit code 2, no traceback. Errors of ours keep their traceback."""
import sys


class InputError(ValueError):
    """Something that the user gave is wrong. The message says what came, what was expected and how to mend it."""


def run_command(main, parser, argv=None):
    """Parses `argv` (default: the command line), runs `main(args)` and exits with what it returns (None is 0).

    An InputError prints one line and exits with 2, as argparse does for a wrong flag. Ctrl-C exits with 130.
    """
    args = parser.parse_args(argv)
    try:
        code = main(args)
    except InputError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped", file=sys.stderr)
        code = 130
    sys.exit(code or 0)
