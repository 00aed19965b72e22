"""Whole files or none: write to a temporary name beside the target, then rename."""
import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from utils.errors import InputError


@contextlib.contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path in the target's folder; on success it replaces `path`, on any error it is removed.

    A reader sees the old file or the new one, never a part of either, even if the process is killed half-way.
    The temporary name keeps the target's suffix, for the libraries that choose a format by it.
    Raises InputError if the folder cannot be created or written, or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.stem[:60]}.", suffix=f".part{path.suffix}",
                                             dir=path.parent)
        os.close(handle)
        yield Path(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp gives 0600; other users of a cluster read these files too
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; "
                         f"give a folder that can be written and has space left") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def require_file(path: str | Path, what: str) -> Path:
    """Returns `path` as a Path. Raises InputError unless it is an existing file; `what` names it, e.g. "checkpoint"."""
    if os.path.isdir(path):  # os.path, for pathlib's raise where a folder above may not be entered
        raise InputError(f"the {what} {path} is a folder; give a file")
    if not os.path.isfile(path):
        raise InputError(f"the {what} {path} does not exist or cannot be reached; check the path")
    return Path(path)


def require_folder(path: str | Path, what: str) -> Path:
    """Returns `path` as a Path. Raises InputError unless it is an existing folder; `what` names it, e.g. "images"."""
    if not os.path.isdir(path):
        raise InputError(f"the folder of {what} {path} does not exist or cannot be reached; check the path")
    return Path(path)


def require_writable(path: str | Path) -> None:
    """Raises InputError if write_atomically could not write this file: found before long work, not after it."""
    path = Path(path)
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder; give the name of a file to write")
    with explain_write_error(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass


@contextlib.contextmanager
def explain_write_error(path: str | Path) -> Iterator[None]:
    """Turns an OSError of writing in the folder `path` into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write in {path}: {error.strerror or error}; "
                         f"give a folder that can be written and has space left") from error
