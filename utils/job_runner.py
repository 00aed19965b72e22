"""Runs jobs of shell commands side by side, shows how far they are, and stops them so that they can be continued."""
import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from utils.comparison import Job
from utils.files import explain_write_error
from utils.progress import progress_bar

ROOT = Path(__file__).resolve().parents[1]
LOG = "log.txt"  # of a job: what its commands print
STEP = re.compile(r"(\w+): +(\d+)%\|[^\[\r\n]*\[[\d:]+<([\d:?]+)")  # a line of progress
WARNING = re.compile(r"^warning: .*$", re.MULTILINE)
WAIT = 1.0  # seconds between two looks


class RunningJob:
    """A job whose commands run one after the other, in a session of their own: a Ctrl-C does not reach them."""

    def __init__(self, job: Job, threads: int):
        self.job, self.threads, self.done = job, threads, 0
        with explain_write_error(job.folder):
            job.folder.mkdir(parents=True, exist_ok=True)
            self.log = open(job.folder / LOG, "ab")
        self.searched = self.log.tell()  # bytes of the log, from its start, in which warnings were looked for
        self.start()

    def start(self) -> None:
        """Starts the next command."""
        command = self.job.commands[self.done]
        self.log.write(f"\n$ {command}\n".encode())
        self.log.flush()
        _, script, *words = shlex.split(command)
        self.process = subprocess.Popen([sys.executable, ROOT / script, *words], stdin=subprocess.DEVNULL,
                                        stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True,
                                        env={**os.environ, "OMP_NUM_THREADS": str(self.threads)})

    def poll(self, go_on: bool) -> int | None:
        """None while it runs, else the exit code. A command that ended well is followed by the next one, if go_on."""
        code = self.process.poll()
        if code == 0:
            self.done += 1
            if go_on and self.done < len(self.job.commands):
                self.start()
                return None
        if code is not None:
            self.log.close()
        return code

    def stop(self, number: int) -> None:
        """Sends a signal to the command that runs."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def describe(self) -> str:
        """How far its command is: "unet, seed 0: train 31 %, 12:05 left"."""
        steps = STEP.findall(self.last_lines(2000))
        return self.job.name + (": {} {} %, {} left".format(*steps[-1]) if steps else "")

    def new_warnings(self) -> list[str]:
        """The warnings that its commands have printed since the last call."""
        with open(self.job.folder / LOG, "rb") as file:
            file.seek(self.searched)
            lines, end, _ = file.read().rpartition(b"\n")
        self.searched += len(lines + end)
        return WARNING.findall(lines.decode(errors="replace"))

    def last_lines(self, size: int) -> str:
        """The end of what its commands have printed."""
        with open(self.job.folder / LOG, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read().decode(errors="replace")


class JobRunner:
    """Runs what find_jobs() gives, `side_by_side` at once, until there is nothing left to start.

    find_jobs() -> (jobs in their order, those done among them); it is called again after each command, since what it
    wrote can make other jobs possible. threads: of each command.
    """

    def __init__(self, find_jobs: Callable[[], tuple[Sequence[Job], Sequence[Job]]], side_by_side: int, threads: int):
        self.find_jobs, self.side_by_side, self.threads = find_jobs, side_by_side, threads
        self.running, self.failed, self.asked = [], [], 0
        self.warned = set()  # warnings that were passed on, without their figures

    def run(self) -> bool:
        """Returns whether it was asked to stop. Then, and at the end, `failed` has the jobs that failed."""
        before = {number: signal.signal(number, self.handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            jobs, done = self.find_jobs()
            with progress_bar(unit="job", desc="compare", total=len(jobs), initial=len(done)) as bar:
                self.start(jobs, done)
                while self.running:
                    time.sleep(WAIT)
                    done_before = sum(running.done for running in self.running)
                    ended = [(running, code) for running in self.running
                             if (code := running.poll(not self.asked)) is not None]
                    advanced = ended or sum(running.done for running in self.running) > done_before
                    self.pass_on_warnings()
                    for running, code in ended:
                        self.running.remove(running)
                        if code and not self.asked:
                            self.failed.append((running.job, running.last_lines(300).strip().splitlines()[-1]))
                    if advanced:
                        jobs, done = self.find_jobs()
                        bar.total = len(jobs)
                        self.start(jobs, done)
                    bar.set_postfix(running="; ".join(running.describe() for running in self.running))
                    bar.update(len(done) - bar.n)  # also by 0: without a terminal a line a minute is due
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for running in self.running:  # after an error of ours
                running.stop(signal.SIGTERM)
        return bool(self.asked)

    def pass_on_warnings(self) -> None:
        """Prints what the runs warn of. Warnings that differ only in their figures count as one."""
        for running in self.running:
            for line in running.new_warnings():
                kind = re.sub(r"[\d.]+", "0", line)
                if kind not in self.warned:
                    self.warned.add(kind)
                    tqdm.write(f"{running.job.name}: {line}", file=sys.stderr)

    def start(self, jobs: Sequence[Job], done: Sequence[Job]) -> None:
        """Starts jobs that are neither done nor failed until as many run as may."""
        names = {running.job.name for running in self.running} | {job.name for job in done}
        names |= {job.name for job, _ in self.failed}
        for job in jobs:
            possible = job.needs is None or job.needs.exists()
            if len(self.running) < self.side_by_side and job.name not in names and possible and not self.asked:
                self.running.append(RunningJob(job, self.threads))

    def handle(self, number: int, frame: object) -> None:
        """The signal handler: the commands stop and save. The second signal stops them at once."""
        self.asked += 1
        for running in self.running:
            running.stop(signal.SIGINT)
        if self.asked == 1:
            print("stopping: each run saves after its step; once more stops at once", file=sys.stderr)
