"""One run on several processes, as torchrun starts them: who is who, and how they meet, fail and stop together.

Each process works on its share of every batch. `--batch_size` is that of all together, so their number changes
neither the iterations nor the learning rate, and a run can be resumed with another number.

Errors follow one rule. A process that fails joins the next meeting (`exchange`) of the others and says so there; then
all of them end, and the main one alone speaks. So nothing that can fail on its own stands between two collectives
that have no meeting between them. Only a process that dies, or runs out of memory within a step, can keep no such
appointment: the others notice that its connection is closed (`lost_is_said`).
"""
import contextlib
import inspect
import os
import warnings

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from utils.errors import InputError, StepInterrupted, StoppedElsewhere

LOST = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe")  # what a dead peer's errors say


class Team:
    """The processes of a run, seen from one of them. Of a single process every method does nothing, at no cost."""

    def __init__(self, rank=0, size=1, local_rank=None):
        """local_rank: this process's number on its machine, None where the run was not started by torchrun."""
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self.over = False  # a meeting has found that a process failed: there is no other one

    @property
    def main(self):
        """Whether this is the process that prints and writes files."""
        return self.rank == 0

    def __str__(self):
        return f"{self.size} processes" if self.size > 1 else "one process"

    def share(self, items):
        """This process's part of a sequence, in order; the parts differ by one item at most, and may be empty."""
        length, longer = divmod(len(items), self.size)
        start = self.rank * length + min(self.rank, longer)
        return items[start:start + length + (self.rank < longer)]

    def exchange(self, stop=False, error=None):
        """A meeting of all processes. Returns whether any of them was asked to stop.

        If one came with an error, this ends every process: the main one raises it as InputError, or its own error
        anew; the others raise StoppedElsewhere.
        """
        if self.size == 1:
            return stop
        flags = torch.tensor([stop, error is not None], dtype=torch.int64)
        dist.all_reduce(flags)
        if flags[1]:
            self.over = True
            messages = [None] * self.size
            dist.all_gather_object(messages, str(error) if error else None)
            if not self.main:
                raise StoppedElsewhere
            if error is None:
                raise InputError(next(message for message in messages if message))
        return bool(flags[0])

    def announce(self, error):
        """Says at the others' next meeting that this process failed. In the main process it returns, to clean up."""
        if not self.over:
            self.exchange(error=error)

    @contextlib.contextmanager
    def main_first(self):
        """Runs the block in the main process, then in the others: what it downloads, they find."""
        if not self.main:
            self.exchange()
        yield
        if self.main:
            self.exchange()

    def sum(self, tensor):
        """The sum of the processes' tensors, in place; returns it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def pixels(self, count):
        """A process's count -> what its summed loss must be divided by, so that the mean of the processes' gradients
        (what DistributedDataParallel takes) is the gradient of the whole batch's mean."""
        return self.sum(count.clone()).clamp(min=1) / self.size if self.size > 1 else count.clamp(min=1)

    def wrap(self, network):
        """What to call in training: the network, or DistributedDataParallel around it.

        static_graph: a connectivity may leave parameters unused, the same ones in every step. Buffers are not shared in
        every step: training does not read them, and the strengths' beta is read before the forward pass.
        """
        if self.size == 1:
            return network
        # said of 1x1 convolutions, of whose weights two descriptions of the same order in memory differ
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        device = next(network.parameters()).device
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # its older name
        return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None,
                                       static_graph=True, **{sync: False})

    def share_buffers(self, network):
        """Gives all processes the main one's buffers: the running statistics of BN, unless they were synchronized."""
        if self.size > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)

    @contextlib.contextmanager
    def lost_is_said(self):
        """Turns the error that a collective raises when another process is gone into one sentence."""
        try:
            yield
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            if self.size == 1 or not any(word in reason for word in LOST):
                raise
            self.over = True
            if not self.main:
                raise StoppedElsewhere from None
            raise InputError("another process of this run ended before its time; look for its own message, or for the "
                             "system's when memory ran out, mend that, and resume the run") from None


ALONE = Team()


@contextlib.contextmanager
def join(gpu=None):
    """The Team of this process: of all processes that torchrun started, or of this one alone.

    It ends with the block: when one process fails, so do all, and the main one raises the error. gpu: -1 if the run
    shall be on CPUs. Raises InputError where the others cannot be reached.
    """
    team = start(gpu)
    if team.size == 1:
        yield team
        return
    with team.lost_is_said():
        try:
            yield team
            if not team.over:
                team.exchange()
        except InputError as error:
            if not isinstance(error, StepInterrupted):
                try:
                    team.announce(error)
                finally:
                    leave()
            raise
        except StoppedElsewhere:
            leave()
            raise
        leave()


def start(gpu):
    """Joins the process group that the environment describes."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return ALONE
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        team = Team(rank, size, int(os.environ.get("LOCAL_RANK", 0)))
        if size > 1:
            on_gpu = gpu != -1 and torch.cuda.is_available() and dist.is_nccl_available()
            if on_gpu:
                torch.cuda.set_device(team.local_rank % torch.cuda.device_count())
            dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", rank=rank, world_size=size)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"cannot join the other processes of the run ({str(error).splitlines()[0]}); start it with "
                         f"torchrun, and leave RANK and WORLD_SIZE unset for a single process") from None
    return team


def leave():
    """Waits for the others, so that none is killed (torchrun does that when one ends) while it still saves.

    The process group is not destroyed. That would hold Python's lock and wait for gloo's threads, of which one may wait
    for that lock to let go of a tensor: with PyTorch 2.6 one of 20 evaluations by three processes never ended.
    run_command ends the process without that.
    """
    with contextlib.suppress(RuntimeError):  # of one that is gone already
        dist.barrier()
