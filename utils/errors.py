"""Errors of the user's input: one sentence, no traceback. Errors of the program keep their traceback."""


class InputError(ValueError):
    """Something that the user gave is wrong. The message states what came, what was expected and how to fix it.

    about: the parameter that is wrong, by its name in the function that raises, or several. A command adds the options
    that set them to the message, see utils/cli.py; the message itself names no option.
    """

    def __init__(self, message: str, about: str | tuple[str, ...] | None = None):
        super().__init__(message)
        self.about = about


class InputWarning(UserWarning):
    """Something in the user's input that the user should know, but that does not stop the command.

    The message has one sentence, as that of an InputError. A command prints it in a line, and a run logs it too.
    kind: of the warnings of one kind that loading a dataset gives, only the first is shown.
    """

    def __init__(self, message: str, kind: str = ""):
        super().__init__(message)
        self.kind = kind or message


class StepInterrupted(InputError):
    """Within a step: memory ran out, or a loader process died. The run's other processes are waiting for this one."""


class StoppedElsewhere(Exception):
    """Another process of the run failed, and the main one reports why: this one ends without a message."""


def first_line(error: BaseException, limit: int = 200) -> str:
    """The first line of another library's message, not longer than `limit`: what fits into a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:limit]
