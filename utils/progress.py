"""Progress: tqdm's bar on a terminal; in a file, a pipe or a batch system's log whole lines, one a minute."""
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

from tqdm import tqdm

INTERVAL = 60.0  # seconds between two lines
LINE = "{l_bar} {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"  # tqdm's, without the bar


def progress_bar(iterable: Iterable | None = None, **options: Any) -> "tqdm | ProgressLines":
    """A bar on standard error. Where that is no terminal, ProgressLines; options: those that both have."""
    if sys.stderr is not None and sys.stderr.isatty():
        return tqdm(iterable, dynamic_ncols=True, **options)
    return ProgressLines(iterable, **options)


class ProgressLines:
    """The part of tqdm's interface that this program uses, written in lines: one a minute, and one at the end.

    Arguments as tqdm's. leave: whether there is a line at the end. clock: returns seconds. file: standard error.
    """

    def __init__(self, iterable: Iterable | None = None, total: int | None = None, desc: str = "", unit: str = "it",
                 initial: int = 0, unit_scale: bool = False, unit_divisor: int = 1000, leave: bool = True,
                 disable: bool = False, file: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
        self.iterable, self.leave, self.clock = iterable, leave, clock
        if total is None and hasattr(iterable, "__len__"):
            total = len(iterable)
        self.total = total
        self.format = {"prefix": desc, "unit": unit, "unit_scale": unit_scale,
                       "unit_divisor": unit_divisor, "initial": initial, "bar_format": LINE}
        self.n, self.figures = initial, ""
        self.written = initial, ""  # n and figures of the last line
        self.file = None if disable else file or sys.stderr
        self.began = self.written_at = clock()

    def __iter__(self) -> Iterator:
        with self:
            for item in self.iterable:
                yield item
                self.update()

    def __enter__(self) -> "ProgressLines":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def update(self, n: int = 1) -> None:
        """Advances by `n`, and writes a line if the last one is a minute old."""
        self.n += n
        if self.clock() - self.written_at >= INTERVAL:
            self.refresh()

    def set_postfix(self, refresh: bool = True, **figures: object) -> None:
        """What the next line ends with. It is not written before its time, whatever `refresh` is."""
        self.figures = ", ".join(f"{name}={value}" for name, value in figures.items())

    def refresh(self) -> None:
        """Writes a line now, unless the last one said the same."""
        if self.file is None or (self.n, self.figures) == self.written:
            return
        self.written, self.written_at = (self.n, self.figures), self.clock()
        line = tqdm.format_meter(self.n, self.total, elapsed=self.written_at - self.began, postfix=self.figures,
                                 **self.format)
        self.file.write(line + "\n")
        self.file.flush()

    def close(self) -> None:
        """Writes the last line."""
        if self.leave:
            self.refresh()
