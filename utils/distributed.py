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
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils.errors import InputError, StepInterrupted, StoppedElsewhere

CLOSED = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe")  # in the errors after a peer's death


class ProcessGroup:
    """The processes of a run, seen from one of them. For a single process every method does nothing, at no cost."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int | None = None):
        """local_rank: this process's number on its machine, None where torchrun did not start the run."""
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self.failed = False  # a process has failed, and all know it: there are no further collectives

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
        """Turns the error that a collective raises when another process is gone into one sentence."""
        try:
            yield
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            if self.size == 1 or not any(word in reason for word in CLOSED):
                raise
            self.failed = True
            if not self.is_main:
                raise StoppedElsewhere from None
            raise InputError("another process of this run ended unexpectedly; look for its own message, or for the "
                             "system's if memory ran out, correct that, and resume the run") from None


ALONE = ProcessGroup()


@contextlib.contextmanager
def process_group(on_cpu: bool = False) -> Iterator[ProcessGroup]:
    """The ProcessGroup of all processes that torchrun started, or of this one alone.

    It ends with the block: when one process fails, so do all, and the main one raises the error. on_cpu: whether the
    run uses CPUs even where there are GPUs. Raises InputError where the others cannot be reached.
    """
    group = join(on_cpu)
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
                    leave()
            raise
        except StoppedElsewhere:
            leave()
            raise
        leave()


def join(on_cpu: bool) -> ProcessGroup:
    """Joins the process group that the environment describes."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return ALONE
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        group = ProcessGroup(rank, size, int(os.environ.get("LOCAL_RANK", 0)))
        if size > 1:
            on_gpu = not on_cpu and torch.cuda.is_available() and dist.is_nccl_available()
            if on_gpu:
                torch.cuda.set_device(group.local_rank % torch.cuda.device_count())
            dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", rank=rank, world_size=size)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"cannot join the other processes of the run ({str(error).splitlines()[0]}); start it with "
                         f"torchrun, and leave RANK and WORLD_SIZE unset for a single process") from None
    return group


def leave() -> None:
    """Waits for the others, so that none is killed (torchrun does that when one ends) while it still saves.

    The process group is not destroyed: that would hold Python's lock and wait for gloo's threads, one of which may wait
    for that lock to release a tensor. With PyTorch 2.6 one of 20 evaluations by three processes never ended.
    run_command ends the process without that.
    """
    with contextlib.suppress(RuntimeError):  # a process that is gone already
        dist.barrier()
