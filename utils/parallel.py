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
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from utils.errors import InputError
from utils.progress import progress_bar

TASKS_PER_WORKER = 16  # below this, starting one more process costs more than it saves
MOST_WORKERS = 61  # what Windows can wait for
MOST_DEATHS = 20  # in a row; more than that, and the files are not the reason
DIED = ("the process that read it died twice: the file is damaged, or memory ran out; get the file again, or run again "
        "with fewer processes")


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return number


# What a parser's add_argument needs for the `workers` of run_parallel.
WORKERS_OPTION = {"type": _positive, "metavar": "N", "help": "processes to work with (default: all cores)"}
_busy = threading.Lock()  # held by a worker process while it is inside a task


def run_parallel(function: Callable, tasks: dict[str, tuple], title: str, workers: int | None = None,
                 may_crash: bool = False) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Calls `function(*arguments)` for every item of `tasks`, a dict of name -> arguments, and shows a progress bar.

    function: importable, because it runs in other processes. It raises InputError for a wrong file, which fails this
    task alone. Any other exception is a bug: the remaining tasks are cancelled and it is raised here. So is Ctrl-C,
    after the running tasks, which take milliseconds each, have finished. A task whose process dies fails too, and the
    others continue.
    workers: the number of processes, by default one for each core; fewer where there are few tasks.
    may_crash: use another process even for a few tasks, because `function` can crash the process that it runs in.

    Returns (results, failures): a dict of name -> what the function returned, and a list of (name, sentence), both
    in the order of `tasks`. Raises InputError when many processes in a row die: then the files are not the reason.
    """
    workers = min(workers or count_cores(), -(-len(tasks) // TASKS_PER_WORKER), MOST_WORKERS)
    found, failed, deaths = {}, {}, 0
    separate = workers > 1 or may_crash
    outcomes = _in_processes(function, tasks, workers) if separate else _in_this_process(function, tasks)
    with contextlib.closing(outcomes):
        for name, result, sentence in progress_bar(outcomes, desc=title, total=len(tasks), unit="file"):
            if sentence is None:
                found[name] = result
            else:
                failed[name] = sentence
            deaths = deaths + 1 if sentence == DIED else 0
            if deaths == MOST_DEATHS:
                raise InputError(f"{deaths} processes in a row died, the last one over {name}, usually because memory "
                                 f"ran out; run again with fewer processes: what is done is kept", about="workers")
    return ({name: found[name] for name in tasks if name in found},
            [(name, failed[name]) for name in tasks if name in failed])


def report_failures(failures: list[tuple[str, str]]) -> int:
    """Prints one line for each (name, sentence) on standard error. Returns the exit code: 1 with failures, else 0."""
    for name, sentence in failures:
        print(f"{name}: {sentence}", file=sys.stderr)
    return 1 if failures else 0


def _in_this_process(function, tasks) -> Iterator[tuple[str, Any, str | None]]:
    """Yields (name, result, None) or (name, None, sentence) as the tasks end."""
    for name, arguments in tasks.items():
        yield (name, *_attempt(function, arguments))


def _in_processes(function, tasks, workers):
    """As _in_this_process, with all workers. Tasks that were running when a process died are tried again, one by one.
    """
    waiting = iter(tasks)
    while retried := (yield from _in_pool(function, tasks, waiting, workers)):
        retried = iter(retried)
        while dead := (yield from _in_pool(function, tasks, retried, 1)):
            yield dead[0], None, DIED


def _in_pool(function, tasks, waiting, workers):
    """As _in_processes, for the names in the iterator `waiting`, but tries none again.

    Returns the names that were running when a process died.
    """
    # Spawned, not forked: a fork of a process with threads (tqdm's, torch's) can hang.
    pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"),
                                                  initializer=_start_worker)
    running = {}  # few at a time, so that few have to be tried again

    def submit(count):
        for name in itertools.islice(waiting, count):
            running[name] = None  # for if the pool is broken by now
            running[name] = pool.submit(_attempt, function, tasks[name])

    try:
        with _interrupts_deferred():  # the workers inherit that: Ctrl-C is for this process to handle
            submit(1 if workers == 1 else 2 * workers)
        while running:
            concurrent.futures.wait(running.values(), return_when=concurrent.futures.FIRST_COMPLETED)
            done = [name for name, future in running.items() if future.done()]
            for name in done:
                outcome = running[name].result()
                del running[name]
                yield (name, *outcome)
            submit(len(done))
    except BrokenProcessPool:
        pass
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return list(running)


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
    # The pool sends SIGTERM when another worker died. In a thread, because this one may hold the lock.
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


def count_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
