"""One run on several processes, as torchrun starts them: who they are, and how they compute, fail and stop together.

Each process works on its share of every batch. The batch size is that of all together, so their number changes neither
the iterations nor the learning rate, and a run can be resumed with another number.

Errors follow one rule. A process that fails takes part in the next `synchronize` of the others and reports its error
there; then all of them end, and the main one alone prints. So nothing that can fail on its own stands between two
collectives without a `synchronize` between them. Only a process that dies, or runs out of memory within a step, cannot
do so: the others find its connection closed (`explain_lost_process`).
"""
import contextlib
import inspect
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils.errors import InputError, StepInterrupted, StoppedElsewhere

# Seconds that a process waits for the others: longer than any download, checkpoint or evaluation by which one falls
# behind. PyTorch waits so long with nccl, and 30 minutes with gloo.
TIMEOUT = 600
# In the errors of gloo, nccl and the store after another process died, and after the time-out.
CLOSED = re.compile("connection closed|connection reset|broken pipe|remote process exit|got 0 bytes", re.IGNORECASE)
SILENT = re.compile("time(d )?out", re.IGNORECASE)
COMMUNICATION = re.compile("nccl|gloo", re.IGNORECASE)  # in those of any kind
HINTS = {"out of memory": "use smaller batches, or see what else takes the GPU's memory",
         "Duplicate GPU": "start at most one process per GPU"}


class ProcessGroup:
    """The processes of a run, seen from one of them. For a single process every method does nothing, at no cost."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int | None = None):
        """local_rank: this process's number on its machine, None where torchrun did not start the run."""
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self.failed = False  # a process has failed, and all know it: there are no further collectives
        self.silent = False  # another process does not answer: they cannot even end together
        self.ending = threading.Event()  # all know that the run stops or failed: what is left to do, each does alone

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes files."""
        return self.rank == 0

    def share(self, items: Sequence) -> Sequence:
        """This process's part of a sequence, in order; the parts differ by one item at most, and may be empty."""
        length, longer = divmod(len(items), self.size)
        start = self.rank * length + min(self.rank, longer)
        return items[start:start + length + (self.rank < longer)]

    def synchronize(self, stop: bool = False, error: InputError | None = None) -> bool:
        """An all-reduce of two flags. Returns whether any process was asked to stop.

        If any has an error, this ends every process: the main one raises it as InputError, or returns to raise its own;
        the others raise StoppedElsewhere.
        """
        if self.size == 1:
            return stop
        flags = torch.tensor([stop, error is not None], dtype=torch.int64)
        dist.all_reduce(flags)
        if flags.any():
            self.ending.set()
        if flags[1]:
            self.failed = True
            errors = [None] * self.size
            dist.all_gather_object(errors, (str(error), getattr(error, "about", None)) if error else None)
            if not self.is_main:
                raise StoppedElsewhere
            if error is None:
                raise InputError(*next(filter(None, errors)))
        return bool(flags[0])

    def report(self, error: InputError) -> None:
        """Reports at the others' next `synchronize` that this process failed. In the main process it returns."""
        if not self.failed:
            self.synchronize(error=error)

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Runs the block in the main process, then in the others: what it downloads, they find."""
        if not self.is_main:
            self.synchronize()
        yield
        if self.is_main:
            self.synchronize()

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of the processes' tensors, in place; returns it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def loss_divisor(self, count: torch.Tensor) -> torch.Tensor:
        """This process's number of counted pixels, or the sum of their weights -> the divisor of its summed loss.

        Then the mean of the processes' gradients, which DistributedDataParallel takes, is the gradient of the mean over
        the whole batch.
        """
        if self.size == 1:
            return count + (count == 0)
        count = self.all_reduce(count.clone())
        return (count + (count == 0)) / self.size

    def wrap(self, network: nn.Module) -> Callable:
        """What to call in training: the network, or DistributedDataParallel around it.

        static_graph: a connectivity may leave parameters unused, the same ones in every step. Buffers are not shared in
        every step: training does not read them, and the strengths' beta is read before the forward pass.
        """
        if self.size == 1:
            return network
        # a warning about 1x1 convolutions: two descriptions of the same order in memory differ
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        device = next(network.parameters()).device
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # its older name
        return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None,
                                       static_graph=True, **{sync: False})

    def broadcast_buffers(self, network: nn.Module) -> None:
        """Gives all processes the main one's buffers: the running statistics of BN, unless they were synchronized."""
        if self.size > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)

    @contextlib.contextmanager
    def explain_lost_process(self) -> Iterator[None]:
        """Turns the error that a collective raises when it cannot reach another process into one sentence."""
        try:
            yield
        except RuntimeError as error:
            reason = reason_of(error)
            if self.size == 1 or not (isinstance(error, dist.DistError) or COMMUNICATION.search(str(error)) or
                                      CLOSED.search(reason)):
                raise
            self.failed = True
            self.ending.set()
            if CLOSED.search(reason):
                if not self.is_main:
                    raise StoppedElsewhere from None
                raise InputError(f"another process of this run ended unexpectedly ({reason}); look for its own "
                                 f"message, or for the system's if memory ran out, correct that, and resume the "
                                 f"run") from None
            # Below each process prints, for the main one may be the one that cannot.
            this = f"the process of rank {self.rank}"
            if SILENT.search(reason):
                self.silent = True
                raise InputError(f"{this} has no answer from the others ({reason}): one hangs, or its machine or "
                                 f"network is down; correct that and resume the run, with a longer time-out if one "
                                 f"needs more time alone", about="timeout") from None
            hint = next((hint for words, hint in HINTS.items() if words in reason),
                        "correct that and resume the run; NCCL_DEBUG=INFO prints more with nccl")
            raise StepInterrupted(f"{this} cannot communicate with the others ({reason}); {hint}") from None


def reason_of(error: BaseException, limit: int = 400) -> str:
    """What an error of gloo, nccl or the store states, in a line, without places in PyTorch's sources."""
    text = str(error).partition("\nException raised from")[0]
    text = re.sub(r"(NCCL error in: )?\[?\S*\.[ch]pp:\d+[],]? *|\[\S*\.cc:\d+\] *", "", text)
    lines = [line.strip(" :") for line in text.splitlines()]
    return "; ".join(line for line in lines if line and line != "Last error")[:limit] or type(error).__name__


ALONE = ProcessGroup()


@contextlib.contextmanager
def process_group(on_cpu: bool = False, timeout: int = TIMEOUT) -> Iterator[ProcessGroup]:
    """The ProcessGroup of all processes that torchrun started, or of this one alone.

    It ends with the block: when one process fails, so do all, and the main one raises the error. on_cpu: whether the
    run uses CPUs even where there are GPUs. timeout: seconds that a process waits for the others. Raises InputError
    where they cannot be reached.
    """
    group = join(on_cpu, timeout)
    if group.size == 1:
        yield group
        return
    with group.explain_lost_process():
        try:
            yield group
            if not group.failed:
                group.synchronize()
        except InputError as error:
            if not isinstance(error, StepInterrupted):
                try:
                    group.report(error)
                finally:
                    leave(group)
            raise
        except StoppedElsewhere:
            leave(group)
            raise
        leave(group)


def join(on_cpu: bool, timeout: int) -> ProcessGroup:
    """Joins the process group that the environment describes."""
    if timeout < 1:
        raise InputError(f"the time-out is {timeout}; give a number of seconds from 1 up", about="timeout")
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return ALONE
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        group = ProcessGroup(rank, size, int(os.environ.get("LOCAL_RANK", 0)))
        if size > 1:
            on_gpu = not on_cpu and torch.cuda.is_available() and dist.is_nccl_available()
            if on_gpu:
                torch.cuda.set_device(group.local_rank % torch.cuda.device_count())
            dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", rank=rank, world_size=size,
                                    timeout=timedelta(seconds=timeout))
    except (ValueError, RuntimeError) as error:
        raise InputError(f"cannot join the other processes of the run ({reason_of(error)}); start it with torchrun, or "
                         f"set MASTER_ADDR and MASTER_PORT to an address and a free port of the first machine, and "
                         f"leave RANK and WORLD_SIZE unset for a single process") from None
    return group


def leave(group: ProcessGroup) -> None:
    """Waits for the others, so that none is killed (torchrun does that when one ends) while it still saves.

    The process group is not destroyed: that would hold Python's lock and wait for gloo's threads, one of which may wait
    for that lock to release a tensor. With PyTorch 2.6 one of 20 evaluations by three processes never ended.
    run_command ends the process without that.
    """
    if not group.silent:
        with contextlib.suppress(RuntimeError):  # a process that is gone already
            dist.barrier()
