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

from models.connectivity import source_name
from utils.checkpoint import save_file
from utils.errors import InputError
from utils.files import require_file, write_atomically

SOURCE_ROOT = Path(__file__).resolve().parents[1]
SOURCE_FOLDERS = (".", "models", "utils", "VOC12")
BEST = "checkpoint_best.pth.tar"
STRENGTHS = "strengths.csv"  # of a search: every connection's strength over time
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


def connection_names(num_stages):
    """"D[l]<-SOURCE" of every connection that a stage can have, in the order of strengths.csv: encoder side first."""
    return [f"D[{l}]<-{source_name(j, side)}" for l in range(num_stages) for side in (0, 1) for j in range(l + 1)]


def read_whole_lines(path):
    """The lines of a text file that end with a line end: a run that was killed may leave half a line."""
    return [line[:-1] for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def read_strengths(folder):
    """strengths.csv of a search's run folder: (names, iterations (T), strengths (T, names)).

    Raises InputError if it is missing or is no such table.
    """
    path = require_file(Path(folder) / STRENGTHS, "log of the strengths")
    try:
        head, *rows = read_whole_lines(path)
        names = head.split(",")[1:]
        table = np.array([row.split(",") for row in rows], dtype=float).reshape(len(rows), len(names) + 1)
    except (ValueError, OSError):
        raise InputError(f"{path} is no table of strengths; give a folder that a search wrote") from None
    if not len(rows):
        raise InputError(f"{path} holds no strengths yet; wait for the first log_interval of the search")
    return names, table[:, 0].astype(int), table[:, 1:]


@contextlib.contextmanager
def said_if_unwritable(path):
    """Turns an OSError of writing in a run folder into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write in {path}: {error.strerror or error}; "
                         f"give a folder that can be written and has space left") from error


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
            leftover.unlink(missing_ok=True)
        if later:
            raise InputError(f"{self.path} holds a later checkpoint, {later[-1].name}: resume that one, or move it "
                             f"away to go back to iteration {resume_at}")
        self.scalars_file = self.path / "tensorboard.json"
        self.scalars = {}
        self.strengths_file = self.path / STRENGTHS
        if resume_at is not None:
            self.read_scalars(resume_at)
        purge = None if resume_at is None else resume_at + 1  # curves of steps that will be done again
        with said_if_unwritable(self.path):
            self.log_file = open(self.path / "log.txt", "a", encoding="utf-8")
            self.writer = SummaryWriter(str(self.path / "tensorboard_log"), purge_step=purge)

    def read_scalars(self, resume_at):
        """Takes up the curves where the checkpoint was written."""
        with contextlib.suppress(OSError, ValueError):
            saved = json.loads(self.scalars_file.read_text(encoding="utf-8"))
            self.scalars = {tag: [row for row in rows if row[1] <= resume_at] for tag, rows in saved.items()}
        if self.strengths_file.exists():
            lines = read_whole_lines(self.strengths_file)
            if not lines:  # killed while it wrote the head
                self.strengths_file.unlink()
                return
            head, *rows = lines
            with write_atomically(self.strengths_file) as temporary:
                temporary.write_text("".join(f"{row}\n" for row in [head, *rows] if row == head or
                                             int(row.partition(",")[0]) <= resume_at), encoding="utf-8")

    def log(self, message):
        """A line on the screen, above the progress bar, and in log.txt."""
        tqdm.write(message)
        self.note(message)

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

    def save_checkpoint(self, content, best, keep_all):
        """Writes checkpoint_ITER.pth.tar, and checkpoint_best.pth.tar too if it is the best.

        The ones before go only after the new one is whole, unless keep_all.
        """
        path = self.path / f"checkpoint_{content['iter']}.pth.tar"
        save_file(path, content)
        if best:
            with write_atomically(self.path / BEST) as temporary:
                os.unlink(temporary)
                try:
                    os.link(path, temporary)
                except OSError:  # a file system without links
                    shutil.copyfile(path, temporary)
        if not keep_all:
            for other in numbered_checkpoints(self.path):
                if iteration_of(other) < content["iter"]:
                    other.unlink(missing_ok=True)

    def close(self):
        """Closes what is open."""
        self.writer.close()
        self.log_file.close()
