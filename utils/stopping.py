"""How a run is stopped: by Ctrl-C, SIGTERM or SIGUSR1, also while it waits for a process that hangs."""
import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable

from tqdm import tqdm

from utils.distributed import ProcessGroup

STOPPED = 130  # exit code of what was stopped, as of a shell's command after Ctrl-C
# Seconds that several processes have for their step or evaluation after Ctrl-C or SIGTERM. torchrun kills them after
# 30, and they still have to save.
TIME_TO_STOP = 20


class StopRequest:
    """Turns the first Ctrl-C, SIGTERM or SIGUSR1 into `requested`, which the training loop reads between two steps.

    A second signal stops at once. Use as a context manager; outside it signals work as before. Where there are several
    processes, a second one changes nothing, nor does one after the block: torchrun sends signals of its own.

    A process that waits for another one in a collective runs no signal handler of Python. So with several processes a
    thread waits for Ctrl-C and SIGTERM too. If TIME_TO_STOP later the processes have not agreed to stop, it calls
    last_words(sentence), where there is one, and ends the process with the exit code STOPPED. SIGUSR1 sets no such
    limit: a batch system sends it minutes before it kills.
    """

    def __init__(self, group: ProcessGroup, last_words: Callable[[str], None] | None = None):
        self.requested = False
        self.before, self.group, self.last_words = {}, group, last_words

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self.before[number] = signal.signal(number, self.handle)
        if self.group.size > 1:
            self.reader, self.writer = socket.socketpair()
            self.writer.setblocking(False)
            signal.set_wakeup_fd(self.writer.fileno(), warn_on_full_buffer=False)  # gets the number of each signal
            os.register_at_fork(after_in_child=forget_wakeup)
            threading.Thread(target=self.watch, daemon=True).start()
        return self

    def __exit__(self, *_):
        if self.group.size == 1:  # else torchrun's signal, after another process failed, would cut the last output off
            for number, handler in self.before.items():
                signal.signal(number, handler)
        else:
            self.group.ending.set()
            signal.set_wakeup_fd(-1)
            self.writer.close()  # ends the thread

    def handle(self, number, frame):
        """The signal handler."""
        if self.requested and self.group.size == 1:
            raise KeyboardInterrupt
        if self.group.is_main and not (self.requested or self.group.failed):
            if self.group.size == 1:
                more = "; once more stops at once, without saving"
            else:
                more = "" if number == signal.SIGUSR1 else f"; what takes longer than {TIME_TO_STOP} s is cut off"
            tqdm.write(f"stopping after this step or evaluation, and saving{more}")
        self.requested = True

    def watch(self):
        """The thread: ends the process if it was asked to stop and does not come to it."""
        while not {signal.SIGINT, signal.SIGTERM} & set(numbers := self.reader.recv(64)):
            if not numbers:
                return
        # The main process first: then the others usually find its connection closed, and end without a message.
        if not self.group.ending.wait(TIME_TO_STOP + (0 if self.group.is_main else 2)):
            with contextlib.suppress(Exception):
                self.last_words(f"stopped without saving: this step or evaluation did not end within {TIME_TO_STOP} s, "
                                f"another process may hang")
                sys.stdout.flush()
                sys.stderr.flush()
            for loader in multiprocessing.active_children():
                loader.kill()
            os._exit(STOPPED)


def forget_wakeup():
    """In a forked process, such as a loader: its signals are not this one's."""
    with contextlib.suppress(ValueError):  # not forked from the main thread
        signal.set_wakeup_fd(-1)
