"""The folder of one run, EXP_PATH/TIMESTAMP: checkpoints, settings, the code that ran, log.txt, curves."""
import contextlib
import datetime
import fcntl
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from utils.curves import Curves
from utils.errors import InputError
from utils.files import explain_write_error, write_atomically
from utils.tensor_files import save_file

SOURCE_ROOT = Path(__file__).resolve().parents[1]
SOURCE_FOLDERS = (".", "models", "utils", "VOC12")
BEST = "checkpoint_best.pth.tar"
NUMBERED = re.compile(r"checkpoint_(\d+)\.pth\.tar")


def new_folder(runs: str, name: str | None = None) -> Path:
    """Creates RUNS/NAME, which may exist, or RUNS/TIMESTAMP, a name that no other run has.

    Raises InputError if that is impossible.
    """
    stamp = name or datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for attempt in range(100):
        path = Path(runs) / (stamp + (f"_{attempt}" if attempt else ""))
        try:
            path.mkdir(parents=True, exist_ok=name is not None)
            return path
        except FileExistsError:
            for place, about in ((Path(runs), "exp_path"), *([(path, "run_name")] if name else [])):
                if not place.is_dir():
                    raise InputError(f"{place} is a file; give a folder for the runs", about=about) from None
        except OSError as error:
            raise InputError(f"cannot create the run folder {path}: {error.strerror}; give a folder that can be "
                             f"written", about="exp_path") from None
    raise InputError(f"too many runs began in {runs} at {stamp}; start again in a second")


def find_last_checkpoint(path: str) -> Path:
    """A checkpoint to resume: `path` itself, or the newest checkpoint_ITER.pth.tar in a run folder."""
    path = Path(path)
    if not os.path.isdir(path):
        return path
    numbered = numbered_checkpoints(path)
    if not numbered:
        raise InputError(f"the folder {path} contains no checkpoint_ITER.pth.tar; "
                         f"give a run folder (EXP_PATH/TIMESTAMP) or a checkpoint")
    return numbered[-1]


def numbered_checkpoints(folder: Path) -> list[Path]:
    """The files checkpoint_ITER.pth.tar of a folder, by iteration."""
    return sorted((p for p in folder.glob("checkpoint_*.pth.tar") if NUMBERED.fullmatch(p.name)), key=iteration_of)


def iteration_of(path: Path) -> int:
    """The ITER of a checkpoint_ITER.pth.tar."""
    return int(NUMBERED.fullmatch(path.name)[1])


class RunFolder:
    """Writes a run's log and checkpoints, and its curves (`curves`).

    resume_at: the iteration that a resumed run continues from. keep_all: whether a new checkpoint leaves those before
    it in place.
    """

    def __init__(self, path: str, resume_at: int | None = None, keep_all: bool = False):
        self.path, self.keep_all = Path(path), keep_all
        self.saved_at = resume_at  # iteration of the last checkpoint
        later = [p for p in numbered_checkpoints(self.path) if resume_at is not None and iteration_of(p) > resume_at]
        if later:
            raise InputError(f"{self.path} contains a later checkpoint, {later[-1].name}: resume that one, or move it "
                             f"away to go back to iteration {resume_at}")
        with explain_write_error(self.path):
            self.log_file = open(self.path / "log.txt", "a", encoding="utf-8")
        self.lock()
        for leftover in self.path.glob(".*.part*"):  # of a process that was killed while it wrote
            with contextlib.suppress(OSError):
                leftover.unlink()
        self.curves = Curves(self.path, resume_at)

    def lock(self) -> None:
        """Raises InputError if another process writes this run, which would mix the two. Until this process ends."""
        try:
            fcntl.lockf(self.log_file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by the loader's processes
        except (BlockingIOError, PermissionError):
            raise InputError(f"another process is writing the run {self.path}; wait for it, or stop it") from None
        except OSError:  # a file system without locks
            pass

    def log(self, message: str) -> None:
        """A line in log.txt, and on the screen above the progress bar."""
        self.note(message)
        tqdm.write(message)

    def note(self, message: str) -> None:
        """A line in log.txt alone."""
        with contextlib.suppress(OSError):  # a full disk is reported where it loses something: at a checkpoint
            self.log_file.write(f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S} {message}\n")
            self.log_file.flush()

    def save_settings(self, settings: Mapping) -> None:
        """settings.json: every option of the run, readable."""
        with write_atomically(self.path / "settings.json") as temporary:
            temporary.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def copy_source(self) -> None:
        """source/: the code that ran."""
        for folder in SOURCE_FOLDERS:
            for file in sorted((SOURCE_ROOT / folder).glob("*.py")):
                target = self.path / "source" / folder / file.name
                with explain_write_error(self.path):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, target)

    def save(self, content: Mapping, is_best: bool) -> None:
        """Writes the curves, then the checkpoint of content["iter"], which states that they are there."""
        self.curves.flush()
        self._save_checkpoint(content, is_best)
        self.saved_at = content["iter"]

    def _save_checkpoint(self, content: Mapping, is_best: bool) -> None:
        """Writes checkpoint_ITER.pth.tar, and before it checkpoint_best.pth.tar if it is the best.

        In this order, since a resumed run takes the numbered one for proof that the best is there. Earlier ones are
        deleted only after the new one is whole.
        """
        path = self.path / f"checkpoint_{content['iter']}.pth.tar"
        if is_best:
            save_file(self.path / BEST, content)
            with write_atomically(path) as temporary:
                os.unlink(temporary)
                try:
                    os.link(self.path / BEST, temporary)
                except OSError:  # a file system without links
                    shutil.copyfile(self.path / BEST, temporary)
        else:
            save_file(path, content)
        if not self.keep_all:
            for other in numbered_checkpoints(self.path):
                if iteration_of(other) < content["iter"]:
                    other.unlink(missing_ok=True)

    def close(self) -> None:
        """Closes what is open."""
        self.curves.close()
        with contextlib.suppress(OSError):  # a full disk: reported where it lost a checkpoint
            self.log_file.close()
