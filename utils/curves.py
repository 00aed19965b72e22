"""The curves of a run: TensorBoard's files, tensorboard.json, and of a search strengths.csv."""
import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter
from torch import nn

from utils.errors import InputError
from utils.files import explain_write_error, write_atomically
from utils.strengths_file import STRENGTHS, connection_names, read_whole_lines


class Curves:
    """Writes the curves of the run in the folder `path`. resume_at: the iteration that a resumed run continues from.

    notes: what has to be logged about curves that could not be continued.
    """

    def __init__(self, path: Path, resume_at: int | None = None):
        self.path = path
        self.scalars_file, self.strengths_file = path / "tensorboard.json", path / STRENGTHS
        self.scalars, self.notes = {}, []
        if resume_at is not None:
            self._read(resume_at)
        purge = None if resume_at is None else resume_at + 1  # curves of steps that will be done again
        with explain_write_error(path):
            self.writer = SummaryWriter(str(path / "tensorboard_log"), purge_step=purge)
        self.events = EventErrors(self.writer.file_writer.event_writer)

    def _read(self, resume_at: int) -> None:
        """Continues the curves where the checkpoint was written."""
        if self.scalars_file.exists():
            with self._replace_if_damaged(self.scalars_file):
                saved = json.loads(self.scalars_file.read_text(encoding="utf-8"))
                self.scalars = {tag: [row for row in rows if row[1] <= resume_at] for tag, rows in saved.items()}
        if self.strengths_file.exists():
            with self._replace_if_damaged(self.strengths_file):
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
            with explain_write_error(self.path):
                os.replace(file, aside)
            self.notes.append(f"warning: {file} is damaged; it is {aside.name} now, and a new one begins")

    def scalar(self, tag: str, value: float, step: int) -> None:
        """A point of a curve."""
        value = float(value)
        self.writer.add_scalar(tag, value, step)
        rows = self.scalars.setdefault(tag, [])
        if rows and rows[-1][1] == step:  # an evaluation that a kill cut short is done again
            rows.pop()
        rows.append([time.time(), step, value])

    def strengths(self, strengths: Sequence[np.ndarray], step: int) -> None:
        """A line of strengths.csv: the strengths of all connections, one array (l+1, 2) per stage."""
        new = not self.strengths_file.exists()
        with explain_write_error(self.path), open(self.strengths_file, "a", encoding="utf-8") as file:
            if new:
                file.write(",".join(["iteration", *connection_names(len(strengths))]) + "\n")
            values = [f"{value:.6g}" for p in strengths for value in p.T.ravel()]
            file.write(",".join([str(step), *values]) + "\n")

    def histogram(self, tag: str, values: np.ndarray, step: int) -> None:
        """The distribution of an array in TensorBoard."""
        self.writer.add_histogram(tag, values, step)

    def histograms(self, network: nn.Module, step: int) -> None:
        """The distribution of every parameter. A parameter that is not finite is left out."""
        for name, parameter in network.named_parameters():
            values = parameter.detach().float().cpu().numpy()
            if np.isfinite(values).all():
                self.writer.add_histogram(name, values, step)

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """uint8 (3, H, W) as a picture in TensorBoard."""
        self.writer.add_image(tag, image, step)

    def flush(self) -> None:
        """Puts the curves on disk. Raises InputError if that fails."""
        with write_atomically(self.scalars_file) as temporary:
            temporary.write_text(json.dumps(self.scalars), encoding="utf-8")
        with explain_write_error(self.path):
            self.writer.flush()
            if self.events.failure:
                raise self.events.failure

    def close(self) -> None:
        """Closes what is open."""
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
            except OSError as error:
                self.failure = error
        return attempt
