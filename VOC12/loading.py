"""Loading batches in loader processes: the DataLoader, and one clear error when a file or a loader process fails."""
import atexit
import contextlib
import ctypes
import functools
import multiprocessing
import os
import re
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from utils.errors import InputError, InputWarning, StepInterrupted
from utils.parallel import count_cores
from VOC12.dataset import SegmentationDataset
from VOC12.transforms import Sample

# What PyTorch reports when a loader process died, and what else means the same while a batch is being fetched.
WORKER_DEATH = re.compile("^DataLoader worker")
FETCH_FAILURE = re.compile("^DataLoader worker|shared memory|/dev/shm|No space left on device|Too many open files")
BROKEN_CONNECTION = EOFError, ConnectionError, FileNotFoundError  # of the socket over which a worker sends its batch
MANY_WORKERS = 16  # loader processes that any machine may start; more only if it has many cores


@dataclass
class LoadError:
    """An InputError on its way from a loader process: raised there, it would arrive wrapped in a traceback."""
    error: InputError


class Loaded(NamedTuple):
    """A Sample, or a batch of them, and the InputWarnings that loading gave: tuple of (kind, message)."""
    sample: Sample
    warnings: tuple = ()


class CatchInputErrors(Dataset):
    """A dataset that returns its InputErrors as LoadErrors, and its InputWarnings with the Samples.

    `collate` forwards them, and `batches` raises the errors and issues the warnings, the first one of each kind.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self.shown = set()  # kinds of warnings; the main process's

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key) -> Loaded | LoadError:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", InputWarning)
            try:
                sample = self.dataset[key]
            except InputError as error:
                return LoadError(error)
        return Loaded(sample, tuple((warning.message.kind, str(warning.message)) for warning in caught
                                    if isinstance(warning.message, InputWarning)))


def collate(items: Sequence[Loaded | LoadError], empty: Sample | None = None) -> Loaded | LoadError:
    """Items of CatchInputErrors -> one with a first axis N, or the first LoadError among them; without any, `empty`."""
    if not items:
        return Loaded(empty)
    for item in items:
        if isinstance(item, LoadError):
            return item
    return Loaded(Sample(*map(torch.stack, zip(*(item.sample for item in items), strict=True))),
                  sum((item.warnings for item in items), ()))


@functools.lru_cache(maxsize=1)
def exit_flag() -> ctypes.c_byte:
    """Shared with the loader processes: whether the main process is exiting."""
    flag = multiprocessing.Value("b", False, lock=False)
    atexit.register(setattr, flag, "value", True)  # runs before multiprocessing ends its processes with SIGTERM
    return flag


def ignore_signals(exiting: ctypes.c_byte, worker_id: int) -> None:
    """In loader processes: a signal to the whole group reaches them too, but the main process decides when to stop."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if exiting.value else None)


def make_loader(dataset: Dataset, num_workers: int, batch_sampler: Sampler | None = None, pin_memory: bool = False,
                empty: Sample | None = None) -> DataLoader:
    """A DataLoader over the batches of `batch_sampler`, or over the dataset in order, one image at a time, if None.

    empty: what a batch without samples becomes.

    The loader has its own random generator: loading must not consume the random numbers of training. Raises InputError
    for a number of loader processes that would only exhaust the machine.
    """
    most = max(MANY_WORKERS, 2 * count_cores())
    if not 0 <= num_workers <= most:
        raise InputError(f"the number of loader processes is {num_workers}; give 0 to {most}", about="num_workers")
    order = {"batch_size": 1} if batch_sampler is None else {"batch_sampler": batch_sampler}
    return DataLoader(CatchInputErrors(dataset), **order, num_workers=num_workers, pin_memory=pin_memory,
                      collate_fn=functools.partial(collate, empty=empty),
                      worker_init_fn=functools.partial(ignore_signals, exit_flag()),
                      persistent_workers=num_workers > 0, generator=torch.Generator().manual_seed(0))


def make_eval_loader(dataset: SegmentationDataset, num_workers: int, pin_memory: bool = False,
                     share: Callable[[Sequence], Sequence] = list) -> DataLoader:
    """A DataLoader over a dataset, one image at a time in order.

    share: sequence of indices -> the part that this process takes, where several share the list.
    """
    return make_loader(Subset(dataset, share(range(len(dataset)))), num_workers, pin_memory=pin_memory)


@contextlib.contextmanager
def explain_loader_death(kind: type[InputError] = StepInterrupted, fetching: bool = False) -> Iterator[None]:
    """Turns the death of a loader process into an InputError (`kind` of it) that says what to do.

    PyTorch raises it wherever the main process happens to be, so use this around the whole loop over batches.
    fetching: the block only fetches a batch from loader processes, where more errors have that cause.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        within = lines[0].startswith("Caught")  # raised in a worker; the traceback follows
        reason = lines[-1 if within else 0]
        gone = fetching and not within and isinstance(error, BROKEN_CONNECTION)
        if not (gone or (FETCH_FAILURE if fetching else WORKER_DEATH).search(reason)):
            raise
        with contextlib.suppress(ValueError):  # in another thread than the main one, where no handler runs
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's would raise the same error again during this one
        raise kind(f"a loader process died, which usually means that memory or shared memory (/dev/shm) ran out "
                   f"({reason}); free some, or use fewer loader processes (0 loads in the main process)",
                   about="num_workers") from None


def batches_and_errors(loader: Iterable) -> Iterator[Sample | LoadError]:
    """Iterates over a loader's batches: Samples and LoadErrors. Raises InputError if a loader process dies."""
    workers, iterator = getattr(loader, "num_workers", 0), iter(loader)
    while True:
        with explain_loader_death(InputError, fetching=True) if workers else contextlib.nullcontext():
            item = next(iterator, None)
        if item is None:
            return
        for kind, message in item.warnings if isinstance(item, Loaded) else ():
            if kind not in loader.dataset.shown:
                loader.dataset.shown.add(kind)
                warnings.warn(message, InputWarning, stacklevel=2)
        yield item.sample if isinstance(item, Loaded) else item


def batches(loader: Iterable) -> Iterator[Sample]:
    """Iterates over a loader's batches (Samples). Raises the InputError of a file that could not be loaded."""
    for batch in batches_and_errors(loader):
        if isinstance(batch, LoadError):
            raise batch.error
        yield batch


def join_equal(samples: Iterable[Sample], batch_size: int) -> Iterator[Sample]:
    """Batches (Samples) -> larger batches of images of equal size: batch_size of them or more, then the rest.

    Of batches in pinned memory they are pinned too.
    """
    waiting = {}
    for sample in samples:
        same = waiting.setdefault(sample.label.shape[1:], [])
        same.append(sample)
        if sum(len(part.label) for part in same) >= batch_size:
            yield Sample(*map(join, zip(*waiting.pop(sample.label.shape[1:]), strict=True)))
    for same in waiting.values():
        yield Sample(*map(join, zip(*same, strict=True)))


def join(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors, one after the other along the first axis; pinned, if the first one is."""
    if len(parts) == 1:
        return parts[0]
    size = sum(map(len, parts)), *parts[0].shape[1:]
    joined = torch.empty(size, dtype=parts[0].dtype, pin_memory=parts[0].is_pinned())
    return torch.cat(parts, out=joined)
