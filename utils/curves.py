"""The curves of a run: TensorBoard's files, tensorboard.json, and of a search strengths.csv.

A run can do without them: whatever goes wrong here is an InputWarning, once for each kind of file.
"""
import contextlib
import json
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import nn

from utils.errors import InputError, InputWarning, first_line
from utils.files import write_atomically
from utils.strengths_file import STRENGTHS, connection_names, read_whole_lines

SCALARS, TENSORBOARD = "tensorboard.json", "tensorboard_log"


class Curves:
    """Writes the curves of the run in the folder `path`. resume_at: the iteration that a resumed run continues from."""

    def __init__(self, path: Path, resume_at: int | None = None):
        self.path = path
        self.scalars_file, self.strengths_file = path / SCALARS, path / STRENGTHS
        self.scalars, self.failed, self.writer = {}, set(), None
        if resume_at is not None:
            self._read(resume_at)
        purge = None if resume_at is None else resume_at + 1  # curves of steps that will be done again
        with self.attempt(TENSORBOARD):
            from tensorboardX import SummaryWriter  # here, for a broken installation of it must not matter
            writer = SummaryWriter(str(path / TENSORBOARD), purge_step=purge)
            self.events = EventErrors(writer.file_writer.event_writer)
            self.writer = writer

    def _read(self, resume_at: int) -> None:
        """Continues the curves where the checkpoint was written."""
        if self.scalars_file.exists():
            with self.attempt(SCALARS), self._replace_if_damaged(self.scalars_file):
                saved = json.loads(self.scalars_file.read_text(encoding="utf-8"))
                self.scalars = {tag: [row for row in rows if row[1] <= resume_at] for tag, rows in saved.items()}
        if self.strengths_file.exists():
            with self.attempt(STRENGTHS), self._replace_if_damaged(self.strengths_file):
                lines = read_whole_lines(self.strengths_file)
                kept = lines[:1] + [row for row in lines[1:] if int(row.partition(",")[0]) <= resume_at]
                if not kept:  # the run was killed while it wrote the head
                    self.strengths_file.unlink()
                    return
                with write_atomically(self.strengths_file) as temporary:
                    temporary.write_text("".join(f"{row}\n" for row in kept), encoding="utf-8")

    @contextlib.contextmanager
    def _replace_if_damaged(self, file: Path) -> Iterator[None]:
        """A curve that cannot be read back must not end the run: its file is renamed, and a new one begins."""
        try:
            yield
        except InputError:  # a full disk, while the file's rest is written back
            raise
        except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError):
            aside = file.with_name(f"{file.name}.damaged")
            os.replace(file, aside)
            warnings.warn(f"{file} is damaged; it is {aside.name} now, and a new one begins", InputWarning,
                          stacklevel=2)

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Around something that a run can do without: an error becomes a warning, the first time that `what` fails."""
        try:
            yield
        except Exception as error:  # other libraries' errors are of any type
            if what not in self.failed:
                self.failed.add(what)
                cause = error.__cause__ or error
                reason = getattr(cause, "strerror", None) or first_line(cause)
                warnings.warn(f"the run goes on without its {what}: {reason}", InputWarning, stacklevel=2)

    def scalar(self, tag: str, value: float, step: int) -> None:
        """A point of a curve."""
        value = float(value)
        rows = self.scalars.setdefault(tag, [])
        if rows and rows[-1][1] == step:  # an evaluation that a kill cut short is done again
            rows.pop()
        rows.append([time.time(), step, value])
        self._add_event("add_scalar", tag, value, step)

    def strengths(self, strengths: Sequence[np.ndarray], step: int) -> None:
        """A line of strengths.csv: the strengths of all connections, one array (l+1, 2) per stage."""
        values = [f"{value:.6g}" for p in strengths for value in p.T.ravel()]
        line = ",".join([str(step), *values]) + "\n"
        with self.attempt(STRENGTHS):
            size = self.strengths_file.stat().st_size if self.strengths_file.exists() else 0
            if not size:
                line = ",".join(["iteration", *connection_names(len(strengths))]) + "\n" + line
            try:
                with open(self.strengths_file, "a", encoding="utf-8") as file:
                    file.write(line)
            except OSError:  # half a line would spoil the next one
                os.truncate(self.strengths_file, size)
                raise

    def histogram(self, tag: str, values: np.ndarray, step: int) -> None:
        """The distribution of an array in TensorBoard."""
        self._add_event("add_histogram", tag, values, step)

    def histograms(self, network: nn.Module, step: int) -> None:
        """The distribution of every parameter. A parameter that is not finite is left out."""
        for name, parameter in network.named_parameters():
            values = parameter.detach().float().cpu().numpy()
            if np.isfinite(values).all():
                self.histogram(name, values, step)

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """uint8 (3, H, W) as a picture in TensorBoard."""
        self._add_event("add_image", tag, image, step)

    def _add_event(self, method: str, tag: str, value: float | np.ndarray, step: int) -> None:
        if self.writer:
            with self.attempt(TENSORBOARD):
                getattr(self.writer, method)(tag, value, step)

    def flush(self) -> None:
        """Puts the curves on disk."""
        with self.attempt(SCALARS), write_atomically(self.scalars_file) as temporary:
            temporary.write_text(json.dumps(self.scalars), encoding="utf-8")
        if self.writer:
            with self.attempt(TENSORBOARD):
                self.writer.flush()
                if self.events.failure:
                    raise self.events.failure

    def close(self) -> None:
        """Closes what is open."""
        if self.writer:
            with self.attempt(TENSORBOARD):
                self.writer.close()


class EventErrors:
    """Keeps the thread that writes TensorBoard's file alive when the disk is full; `failure` is the error then.

    Without that thread tensorboardX waits for ever as soon as its queue is full.
    """

    def __init__(self, event_writer):
        self.failure = None
        file = event_writer._ev_writer
        for name in ("write_event", "flush", "close"):
            setattr(file, name, self._recording(getattr(file, name)))

    def _recording(self, method):
        def attempt(*arguments):
            try:
                return method(*arguments)
            except Exception as error:
                self.failure = error
        return attempt
