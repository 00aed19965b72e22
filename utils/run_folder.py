"""The folder of one run: log, settings, source, TensorBoard curves, checkpoints (spec section 8)."""
import contextlib
import datetime
import json
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from utils.checkpoint import save_file
from utils.errors import InputError
from utils.files import write_atomically
from utils.strengths_file import STRENGTHS, connection_names, read_whole_lines

SOURCE_ROOT = Path(__file__).resolve().parents[1]
SOURCE_FOLDERS = (".", "models", "utils", "VOC12")
BEST = "checkpoint_best.pth.tar"
NUMBERED = re.compile(r"checkpoint_(\d+)\.pth\.tar")


def new_folder(exp_path):
    """Creates EXP_PATH/TIMESTAMP, a name that no other run has. Raises InputError if that is impossible."""
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for attempt in range(100):
        path = Path(exp_path) / (stamp + (f"_{attempt}" if attempt else ""))
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            if not Path(exp_path).is_dir():
                raise InputError(f"--exp_path {exp_path} is a file; give a folder for the runs") from None
        except OSError as error:
            raise InputError(f"cannot create the run folder {path}: {error.strerror}; "
                             f"give --exp_path a folder that can be written") from None
    raise InputError(f"too many runs began in {exp_path} at {stamp}; start again in a second")


def find_last_checkpoint(path):
    """A checkpoint to resume: `path` itself, or the newest checkpoint_ITER.pth.tar in a run folder."""
    path = Path(path)
    if not os.path.isdir(path):
        return path
    numbered = numbered_checkpoints(path)
    if not numbered:
        raise InputError(f"the folder {path} holds no checkpoint_ITER.pth.tar to resume; "
                         f"give a run folder (EXP_PATH/TIMESTAMP) or a checkpoint")
    return numbered[-1]


def numbered_checkpoints(folder):
    """The files checkpoint_ITER.pth.tar of a folder, by iteration."""
    return sorted((p for p in folder.glob("checkpoint_*.pth.tar") if NUMBERED.fullmatch(p.name)), key=iteration_of)


def iteration_of(path):
    """The ITER of a checkpoint_ITER.pth.tar."""
    return int(NUMBERED.fullmatch(path.name)[1])


@contextlib.contextmanager
def said_if_unwritable(path):
    """Turns an OSError of writing in a run folder into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write in {path}: {error.strerror or error}; "
                         f"give a folder that can be written and has space left") from error


class LastingFile:
    """Keeps the thread that writes TensorBoard's file alive when the disk is full: `failure` is the error then.

    Without that thread tensorboardX waits for ever as soon as its queue is full.
    """

    def __init__(self, event_writer):
        self.failure = None
        file = event_writer._ev_writer
        for name in ("write_event", "flush", "close"):
            setattr(file, name, self.lasting(getattr(file, name)))

    def lasting(self, method):
        def attempt(*arguments):
            try:
                return method(*arguments)
            except OSError as error:
                self.failure = error
        return attempt


class NoFolder:
    """Stands in for a RunFolder in the processes that write nothing: its methods do nothing."""
    path = Path(".")

    def __getattr__(self, name):
        getattr(RunFolder, name)  # an AttributeError for what a RunFolder has not
        return lambda *_, **__: None


class RunFolder:
    """Writes a run's log, curves and checkpoints. `resume_at`: the iteration that a resumed run continues from."""

    def __init__(self, path, resume_at=None):
        self.path = Path(path)
        later = [p for p in numbered_checkpoints(self.path) if resume_at is not None and iteration_of(p) > resume_at]
        for leftover in self.path.glob(".*.part*"):  # of a process that was killed while it wrote
            with contextlib.suppress(OSError):
                leftover.unlink()
        if later:
            raise InputError(f"{self.path} holds a later checkpoint, {later[-1].name}: resume that one, or move it "
                             f"away to go back to iteration {resume_at}")
        self.scalars_file = self.path / "tensorboard.json"
        self.scalars, self.put_aside = {}, []
        self.strengths_file = self.path / STRENGTHS
        if resume_at is not None:
            self.read_scalars(resume_at)
        purge = None if resume_at is None else resume_at + 1  # curves of steps that will be done again
        with said_if_unwritable(self.path):
            self.log_file = open(self.path / "log.txt", "a", encoding="utf-8")
            self.writer = SummaryWriter(str(self.path / "tensorboard_log"), purge_step=purge)
            self.events = LastingFile(self.writer.file_writer.event_writer)
        for line in self.put_aside:
            self.log(line)

    def read_scalars(self, resume_at):
        """Takes up the curves where the checkpoint was written."""
        if self.scalars_file.exists():
            with self.put_aside_if_damaged(self.scalars_file):
                saved = json.loads(self.scalars_file.read_text(encoding="utf-8"))
                self.scalars = {tag: [row for row in rows if row[1] <= resume_at] for tag, rows in saved.items()}
        if self.strengths_file.exists():
            with self.put_aside_if_damaged(self.strengths_file):
                lines = read_whole_lines(self.strengths_file)
                kept = lines[:1] + [row for row in lines[1:] if int(row.partition(",")[0]) <= resume_at]
                if not kept:  # killed while it wrote the head
                    self.strengths_file.unlink()
                    return
                with write_atomically(self.strengths_file) as temporary:
                    temporary.write_text("".join(f"{row}\n" for row in kept), encoding="utf-8")

    @contextlib.contextmanager
    def put_aside_if_damaged(self, path):
        """A log that cannot be read back must not end the run: it is renamed, and a new one begins."""
        try:
            yield
        except InputError:  # a full disk, while the file's rest is written back
            raise
        except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError):
            aside = path.with_name(f"{path.name}.damaged")
            with said_if_unwritable(self.path):
                os.replace(path, aside)
            self.put_aside.append(f"warning: {path} is damaged; it is {aside.name} now, and a new one begins")

    def log(self, message):
        """A line in log.txt, and on the screen above the progress bar."""
        self.note(message)
        tqdm.write(message)

    def note(self, message):
        """A line in log.txt alone."""
        with contextlib.suppress(OSError):  # a full disk is reported where it loses something: at a checkpoint
            self.log_file.write(f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S} {message}\n")
            self.log_file.flush()

    def save_settings(self, settings):
        """settings.json: every option of the run, readable."""
        with write_atomically(self.path / "settings.json") as temporary:
            temporary.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def copy_source(self):
        """source/: the code that ran."""
        for folder in SOURCE_FOLDERS:
            for file in sorted((SOURCE_ROOT / folder).glob("*.py")):
                target = self.path / "source" / folder / file.name
                with said_if_unwritable(self.path):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, target)

    def scalar(self, tag, value, step):
        """A point of a curve, in TensorBoard and in tensorboard.json."""
        value = float(value)
        self.writer.add_scalar(tag, value, step)
        rows = self.scalars.setdefault(tag, [])
        if rows and rows[-1][1] == step:  # an evaluation that a kill cut short is done again
            rows.pop()
        rows.append([time.time(), step, value])

    def strengths(self, strengths, step):
        """A line of strengths.csv: the strengths of all connections, one array (l+1, 2) a stage, after `step` steps."""
        new = not self.strengths_file.exists()
        with said_if_unwritable(self.path), open(self.strengths_file, "a", encoding="utf-8") as file:
            if new:
                file.write(",".join(["iteration", *connection_names(len(strengths))]) + "\n")
            values = [f"{value:.6g}" for p in strengths for value in p.T.ravel()]
            file.write(",".join([str(step), *values]) + "\n")

    def histogram(self, tag, values, step):
        """The distribution of an array in TensorBoard."""
        self.writer.add_histogram(tag, values, step)

    def histograms(self, network, step):
        """The distribution of every parameter. A parameter that is not finite is left out."""
        for name, parameter in network.named_parameters():
            values = parameter.detach().float().cpu().numpy()
            if np.isfinite(values).all():
                self.writer.add_histogram(name, values, step)

    def image(self, tag, image, step):
        """uint8 (3, H, W) as a picture in TensorBoard."""
        self.writer.add_image(tag, image, step)

    def flush(self):
        """Puts the curves on disk."""
        with write_atomically(self.scalars_file) as temporary:
            temporary.write_text(json.dumps(self.scalars), encoding="utf-8")
        with said_if_unwritable(self.path):
            self.writer.flush()
            if self.events.failure:
                raise self.events.failure

    def save_checkpoint(self, content, best, keep_all):
        """Writes checkpoint_ITER.pth.tar, and before it checkpoint_best.pth.tar if it is the best.

        In this order, for what resumes takes the numbered one for proof that the best is there. The ones before go only
        after the new one is whole, unless keep_all.
        """
        path = self.path / f"checkpoint_{content['iter']}.pth.tar"
        if best:
            save_file(self.path / BEST, content)
            with write_atomically(path) as temporary:
                os.unlink(temporary)
                try:
                    os.link(self.path / BEST, temporary)
                except OSError:  # a file system without links
                    shutil.copyfile(self.path / BEST, temporary)
        else:
            save_file(path, content)
        if not keep_all:
            for other in numbered_checkpoints(self.path):
                if iteration_of(other) < content["iter"]:
                    other.unlink(missing_ok=True)

    def close(self):
        """Closes what is open."""
        self.writer.close()
        with contextlib.suppress(OSError):  # a full disk: said where it lost a checkpoint
            self.log_file.close()
