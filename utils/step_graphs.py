"""The forward and backward pass of a step as CUDA graphs: a GPU repeats them without waiting for Python's launches."""
import warnings
from collections.abc import Callable, Iterable

import torch

from models.components import is_own
from utils.device_errors import GPU_MEMORY
from utils.errors import InputWarning, first_line

EAGER = 2  # steps of a shape before its capture, in which cuDNN chooses its algorithms and libraries are set up


class StepGraph:
    """One step of one shape. `forward` and `backward` run it; the caller makes the optimizer's step in between.

    compute(image, label) -> (loss to differentiate, values to read, predictions): tensors on the GPU. All that changes
    from step to step has to be in tensors that keep their place: parameters, buffers, the state of the generator.
    """

    def __init__(self, compute: Callable, optimizer: torch.optim.Optimizer, image: torch.Tensor, label: torch.Tensor):
        self.image, self.label = image.clone(), label.clone()
        self.first, self.second = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        optimizer.zero_grad(set_to_none=True)  # then the backward pass writes the gradients, and does not add to them
        random_state = torch.cuda.get_rng_state(image.device)
        try:
            # thread_local: the loader's thread that pins memory goes on meanwhile
            with torch.cuda.graph(self.first, capture_error_mode="thread_local"):
                loss, self.values, self.prediction = compute(self.image, self.label)
            with torch.cuda.graph(self.second, pool=self.first.pool(), capture_error_mode="thread_local"):
                loss.backward()
        finally:
            torch.cuda.set_rng_state(random_state, image.device)
        self.gradients = [(parameter, parameter.grad) for group in optimizer.param_groups
                          for parameter in group["params"] if parameter.grad is not None]

    def forward(self, image: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the values and the predictions, which the next step overwrites."""
        self.image.copy_(image)
        self.label.copy_(label)
        self.first.replay()
        return self.values, self.prediction

    def backward(self) -> None:
        """Sets the gradients."""
        self.second.replay()
        for parameter, gradient in self.gradients:
            parameter.grad = gradient  # a step of another shape has replaced it


class StepGraphs:
    """The StepGraphs of a run, by the shape of the batch. A shape is captured when it comes for the third time.

    If a step cannot be captured, there is a warning, and it runs as it would without graphs.
    """

    def __init__(self, capture: Callable = StepGraph):
        self.capture, self.seen, self.graphs, self.failed = capture, {}, {}, False

    def find(self, compute: Callable, optimizer: torch.optim.Optimizer, image: torch.Tensor,
             label: torch.Tensor) -> StepGraph | None:
        """The graph for this batch; None if the step has to run without one. The arguments are those of StepGraph."""
        shape = tuple(image.shape)
        if shape in self.graphs or self.failed:
            return self.graphs.get(shape)
        self.seen[shape] = self.seen.get(shape, 0) + 1
        if self.seen[shape] <= EAGER:
            return None
        try:
            self.graphs[shape] = self.capture(compute, optimizer, image, label)
        except RuntimeError as error:
            self.failed = True
            self.graphs.clear()
            reason = "the GPU's memory ran out" if GPU_MEMORY.search(str(error)) else first_line(error)
            warnings.warn(f"the steps cannot be captured as CUDA graphs ({reason}); they run without, which is slower "
                          f"where the GPU waits for Python", InputWarning, stacklevel=2)
        return self.graphs.get(shape)


def why_no_graphs(parts: Iterable[str], device: torch.device, num_processes: int) -> str | None:
    """Why a run cannot use CUDA graphs, in words; None if it can. parts: the names of the network's and the loss's."""
    if device.type != "cuda":
        return "it runs on a CPU"
    if num_processes > 1:
        return "it has several processes"
    own = [name for name in parts if is_own(name)]
    return f"{own[0]} may do in Python what a graph does not repeat" if own else None
