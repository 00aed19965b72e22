"""One function over many files on all cores: progress, named failures, a prompt and clean end."""
import argparse
import concurrent.futures
import contextlib
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

from utils.errors import InputError

TASKS_PER_WORKER = 16  # below this, starting one more process costs more than it saves
MOST_WORKERS = 61  # what Windows can wait for
MOST_DEATHS = 20  # in a row, before it is not the files any more
DIED = ("the process that read it died twice: the file is damaged, or memory ran out; fetch it again, or run again with "
        "fewer processes")

_busy = threading.Lock()  # held by a worker process while it is inside a task


def add_workers_argument(parser):
    """Adds --workers: a positive integer, default None, for all cores."""
    parser.add_argument("--workers", type=_positive, metavar="N", help="processes to work with (default: all cores)")


def run_parallel(function, tasks, title, workers=None, may_crash=False):
    """Calls `function(*arguments)` for every item of `tasks`, a dict of name -> arguments, and shows a progress bar.

    `function` is importable (it runs in other processes) and raises InputError for a wrong file; that fails this one
    task. Any other exception is a bug: the rest is cancelled and it is raised here. So is Ctrl-C, after the tasks
    under way, which take milliseconds each, have finished. A task whose process dies fails too, and the rest goes on;
    with `may_crash` even a few tasks run in another process, for what may end its own.

    Returns (results, failures): a dict of name -> what the function returned, and a list of (name, sentence), both
    in the order of `tasks`. Raises InputError when many processes in a row die: then it is not the files.
    """
    workers = min(workers or count_cores(), -(-len(tasks) // TASKS_PER_WORKER), MOST_WORKERS)
    found, failed, deaths = {}, {}, 0
    outcomes = _in_processes(function, tasks, workers) if workers > 1 or may_crash else _here(function, tasks)
    with contextlib.closing(outcomes):
        for name, result, sentence in tqdm(outcomes, desc=title, total=len(tasks), unit="file"):
            if sentence is None:
                found[name] = result
            else:
                failed[name] = sentence
            deaths = deaths + 1 if sentence == DIED else 0
            if deaths == MOST_DEATHS:
                raise InputError(f"{deaths} processes in a row died, the last one over {name}, most often for lack of "
                                 f"memory; run again with fewer processes: what is done is kept", about="workers")
    return ({name: found[name] for name in tasks if name in found},
            [(name, failed[name]) for name in tasks if name in failed])


def report_failures(failures):
    """Prints one line for each (name, sentence) on standard error. Returns the exit code: 1 with failures, else 0."""
    for name, sentence in failures:
        print(f"{name}: {sentence}", file=sys.stderr)
    return 1 if failures else 0


def _here(function, tasks):
    """Yields (name, result, None) or (name, None, sentence) as the tasks end."""
    for name, arguments in tasks.items():
        yield (name, *_attempt(function, arguments))


def _in_processes(function, tasks, workers):
    """As _here, with all workers. What was under way when a process died is tried again, one task at a time."""
    waiting = iter(tasks)
    while suspects := (yield from _in_pool(function, tasks, waiting, workers)):
        suspects = iter(suspects)
        while dead := (yield from _in_pool(function, tasks, suspects, 1)):
            yield dead[0], None, DIED


def _in_pool(function, tasks, waiting, workers):
    """As _here, of the names in the iterator `waiting`. Returns the names that were under way when a process died."""
    # Spawned, not forked: a fork of a process with threads (tqdm's, torch's) may hang.
    pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"),
                                                  initializer=_start_worker)
    under_way = {}  # few at a time, so that few are suspect

    def submit(count):
        for name in itertools.islice(waiting, count):
            under_way[name] = None  # for if the pool is broken by now
            under_way[name] = pool.submit(_attempt, function, tasks[name])

    try:
        with _interrupts_deferred():  # the workers inherit that: Ctrl-C is for this process to handle
            submit(1 if workers == 1 else 2 * workers)
        while under_way:
            concurrent.futures.wait(under_way.values(), return_when=concurrent.futures.FIRST_COMPLETED)
            done = [name for name, future in under_way.items() if future.done()]
            for name in done:
                outcome = under_way[name].result()
                del under_way[name]
                yield (name, *outcome)
            submit(len(done))
    except BrokenProcessPool:
        pass
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return list(under_way)


def _attempt(function, arguments):
    with _busy:
        try:
            return function(*arguments), None
        except InputError as error:
            return None, str(error)


@contextlib.contextmanager
def _interrupts_deferred():
    """Ctrl-C within the block takes effect after it; in processes that start within it, never."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # the pool's, when another worker died; in a thread, for this one may hold the lock
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=_leave, daemon=True).start())
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent():
    """Ends this worker when the main process is gone, for instance killed."""
    multiprocessing.parent_process().join()
    _leave()


def _leave():
    """Ends this worker, but not in the middle of a file."""
    with _busy:
        os._exit(1)


def count_cores():
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux: the cores that this process may use
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _positive(text):
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return number
