"""Checks of benchmarks/gpu.py: one step on the device against the CPU's, in each type."""
import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn

from benchmarks.gpu_report import Finding, Sizes
from models import FullyDenseNetwork, SparseMask, connectivity
from models.layers import set_bn_momentum
from utils.engine import search_losses, train_losses
from utils.optimizer import make_optimizer
from utils.runtime import Precision

TASKS = ("search", "train")
CLASSES = 21
NO_TF32 = "a CPU has no TF32"
MOMENTUM = 0.1  # of BN
SCALE = 256.0  # of the loss, a power of two: what float16 cannot represent without it, and no change for other types


class Tried(NamedTuple):
    """A type as the checks try it: the commands' type, whether with TF32, and what it may differ by from float64.

    That is `factor` times the error that the CPU makes in the type `alike`, the largest on so many `images`, and at
    least 16 times `rounding`, the relative rounding error of that type.
    """
    type: str
    tf32: bool
    alike: str
    rounding: float
    factor: float = 3
    images: int = 1


TYPES = {"float32": Tried("float32", False, "float32", 2.0 ** -24, factor=10, images=5),
         "TF32": Tried("float32", True, "float16", 2.0 ** -11),
         "bfloat16": Tried("bfloat16", True, "bfloat16", 2.0 ** -8),
         "float16": Tried("float16", True, "float16", 2.0 ** -11)}
EXPLAINED = """\
One optimizer step from the same weights, on the same batch, without noise: on the device, and on the CPU in float64.
Each figure is |device - float64| / |float64| over all values of that name. How much rounding grows within a step
depends on the network, so the tolerances are measured: the error that the CPU makes in the same type, times 10 for
float32 and 3 for 16 bits (a GPU adds in another order, with other algorithms), and at least 16 roundings of the type.
In float32 it is the largest error on five images that differ by a rounding: gradients jump where a ReLU6 switches.
TF32, which is what the commands use on a GPU for float32, keeps as many bits as float16 and rounds less often: it may
have 3 times the error of float16. Where the tolerance would be 1 or more, the type does not determine the values; then
the norm is compared with that of the CPU in the same type, and may be half or twice as large."""


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Within it, matrix products and convolutions in float32 use TF32, or do not."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def make_network(task: str, depth: int, noise: bool = False) -> nn.Module:
    """The same weights in every call."""
    torch.manual_seed(0)
    network = FullyDenseNetwork(depth=depth, num_classes=CLASSES, noise=noise) if task == "search" else \
        SparseMask(connectivity.load("published"), depth=depth, num_classes=CLASSES)
    set_bn_momentum(network, MOMENTUM)
    return network


def make_batch(sizes: Sizes, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A random image (N, 3, H, W), channels last, and label (N, H, W) with a void corner."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(sizes.batch, 3, sizes.side, sizes.side, generator=generator)
    label = torch.randint(0, CLASSES, (sizes.batch, sizes.side, sizes.side), generator=generator)
    label[:, :9, :9] = 255
    return image.to(memory_format=torch.channels_last), label


def losses_of(task: str) -> Callable:
    """search_losses or train_losses."""
    return functools.partial(search_losses, sparse_weight=0.01) if task == "search" else train_losses


def one_step(task: str, device: torch.device, type_name: str, with_tf32: bool, sizes: Sizes, compiled: bool = False,
             image: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """A step -> what it computes, by name: float64 vectors on the CPU. image: another than make_batch's."""
    network, (own_image, label) = make_network(task, sizes.depth), make_batch(sizes)
    image = own_image if image is None else image
    before = flat(network.parameters())
    precision = Precision(type_name, device)
    precision.place(network).train()
    if compiled:
        network.compile()
    optimizer = make_optimizer(network, 0.005, 10.0, 1.0, 0.9, 4e-5)
    with tf32(with_tf32):
        with precision.autocast():
            losses, logits = losses_of(task)(network, image.to(device, precision.dtype), label.to(device))
        (losses.total * SCALE).backward()
    for parameter in network.parameters():
        if parameter.grad is not None:
            parameter.grad /= SCALE
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    found = {"logits": flat([logits]), "losses": flat([x for x in (losses.task, losses.sparse) if x is not None]),
             "gradients, encoder": flat(p.grad for p in network.encoder_parameters()),
             "gradients, decoder": flat(p.grad for p in network.decoder_parameters()),
             "BN means": flat(norm.running_mean for norm in norms) / MOMENTUM,
             "BN variances": (flat(norm.running_var for norm in norms) - (1 - MOMENTUM)) / MOMENTUM}
    if task == "search":
        found["gradients, strengths"] = flat(p.grad for p in network.strength_parameters())
    optimizer.step()
    found["change of the weights"] = flat(network.parameters()) - before
    if task == "search":
        network.clamp_strengths()
        found["strengths after the step"] = flat(torch.from_numpy(p) for p in network.final_strengths())
    return found


def flat(tensors) -> torch.Tensor:
    """All values of some tensors: one float64 vector on the CPU."""
    return torch.cat([tensor.detach().double().cpu().flatten() for tensor in tensors])


def distance(value: torch.Tensor, reference: torch.Tensor) -> float:
    """|value - reference| / |reference|."""
    return float((value - reference).norm() / reference.norm().clamp(min=1e-300))


class Parity:
    """Steps of one task on the device against the CPU's, which are computed once for each type."""

    def __init__(self, task: str, device: torch.device, sizes: Sizes):
        self.task, self.device, self.sizes = task, device, sizes
        self.exact = functools.cache(lambda: self.on_cpu("float64"))
        self.measured = functools.cache(self.measure)

    def on_cpu(self, type_name: str, image: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """one_step on the CPU."""
        return one_step(self.task, torch.device("cpu"), type_name, False, self.sizes, image=image)

    def measure(self, type_name: str, rounding: float, images: int) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """The step on the CPU in a type, and its largest error by name, on images that differ by the rounding."""
        image, generator = make_batch(self.sizes)[0], torch.Generator().manual_seed(0)
        found = [self.on_cpu(type_name)]
        for _ in range(images - 1):
            moved = image * (1 + 2 * rounding * torch.randn(image.shape, generator=generator))
            found.append(self.on_cpu(type_name, moved))
        errors = {what: max(distance(each[what], value) for each in found) for what, value in self.exact().items()}
        return found[0], errors

    def check(self, name: str, compiled: bool = False) -> Iterator[Finding]:
        """A finding for each name of values. name: of TYPES."""
        tried = TYPES[name]
        if name == "TF32" and self.device.type == "cpu":
            yield Finding("", None, NO_TF32)
            return
        exact, (alike, errors) = self.exact(), self.measured(tried.alike, tried.rounding, tried.images)
        found = one_step(self.task, self.device, tried.type, tried.tf32, self.sizes, compiled)
        for what, value in found.items():
            tolerance = max(tried.factor * errors[what], 16 * tried.rounding)
            error = distance(value, exact[what])
            if tolerance < 1:
                yield Finding(what, error <= tolerance, f"{error:.1e}, at most {tolerance:.1e}")
            else:
                ratio = float(value.norm() / alike[what].norm())
                yield Finding(what, 0.5 <= ratio <= 2, f"norm {ratio:.2f} times the CPU's, 0.5 to 2")


def parity_checks(device: torch.device, sizes: Sizes) -> Iterator[tuple[str, Callable]]:
    """(name, check) of a search step and a training step in each type."""
    for task in TASKS:
        parity = Parity(task, device, sizes)
        for name in TYPES:
            yield f"{task} step, {name}", functools.partial(parity.check, name)
