"""Checks of benchmarks/gpu.py: many steps in each type stay finite, and compiled networks compute what others do."""
import functools
from collections.abc import Callable, Iterator

import torch

from benchmarks.gpu_parity import (
    NO_TF32,
    TASKS,
    TYPES,
    Parity,
    distance,
    flat,
    losses_of,
    make_batch,
    make_network,
    tf32,
)
from benchmarks.gpu_report import Finding, Sizes
from models.inference import for_inference
from models.layers import set_bn_momentum
from utils.engine import train_step
from utils.optimizer import make_optimizer
from utils.runtime import Precision
from utils.step_graphs import StepGraphs

GRAPH_STEPS = 8  # of which the first two of a shape run without a graph


def many_steps(task: str, name: str, device: torch.device, sizes: Sizes) -> Iterator[Finding]:
    """Steps on four batches in turn: no loss, and at the end no weight, may be infinite or NaN."""
    if name == "TF32" and device.type == "cpu":
        yield Finding("", None, NO_TF32)
        return
    precision = Precision(TYPES[name].type, device)
    network = precision.place(make_network(task, sizes.depth, noise=True)).train()
    optimizer = make_optimizer(network, 0.005, 10.0, 1.0, 0.9, 4e-5)
    batches = [tuple(tensor.to(device) for tensor in make_batch(sizes, seed)) for seed in range(4)]
    totals, scaler = [], precision.scaler
    with tf32(TYPES[name].tf32):
        for step in range(sizes.steps):
            with precision.autocast():
                losses, _ = losses_of(task)(network, *batches[step % len(batches)])
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(losses.total).backward()
            scaler.step(optimizer)
            scaler.update()
            if task == "search":
                network.clamp_strengths()
            totals.append(losses.total.detach())
    totals = torch.stack(totals).double().cpu()
    tensors = [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
    broken = int((~totals.isfinite()).sum()), sum(not bool(tensor.isfinite().all()) for tensor in tensors)
    scale = f", loss scale {scaler.get_scale():g}" if scaler.is_enabled() else ""
    yield Finding("", not any(broken), f"{sizes.steps} steps, loss {totals[0]:.3f} to {totals[-1]:.3f}{scale}; not "
                                       f"finite: {broken[0]} losses, {broken[1]} of {len(tensors)} tensors")


def steps_with(graphs: StepGraphs | None, task: str, name: str, device: torch.device, sizes: Sizes) -> list:
    """Losses of GRAPH_STEPS steps, two of them with a smaller batch, then weights and buffers: two flat vectors."""
    precision = Precision(TYPES[name].type, device)
    network = precision.place(make_network(task, sizes.depth, noise=True)).train()
    optimizer = make_optimizer(network, 0.005, 10.0, 1.0, 0.9, 4e-5)
    totals = []
    torch.manual_seed(1)  # of the noise
    with tf32(TYPES[name].tf32):
        for step in range(GRAPH_STEPS):
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * (1 - step / GRAPH_STEPS)
            if task == "search":
                network.strengths.anneal(step / GRAPH_STEPS, 50.0)
            image, label = (tensor.to(device) for tensor in make_batch(sizes, step))
            count = sizes.batch - 1 if step in (3, 5) else sizes.batch
            losses, _ = train_step(network, image[:count], label[:count], losses_of(task), optimizer, precision,
                                   graphs=graphs)
            totals.append(losses.total.clone())
    return [flat(totals), flat(t for t in network.state_dict().values() if t.is_floating_point())]


def graph_steps(task: str, name: str, device: torch.device, sizes: Sizes) -> Iterator[Finding]:
    """Steps as CUDA graphs compute what steps without them compute, within 3 times what two such runs differ by."""
    graphs = StepGraphs()
    first, again, replayed = (steps_with(each, task, name, device, sizes) for each in (None, None, graphs))
    yield Finding("captured", len(graphs.graphs) == 1, f"{len(graphs.graphs)} of 1 shape")
    for what, plain, other, value in zip(("losses", "weights"), first, again, replayed, strict=True):
        error, tolerance = distance(value, plain), max(3 * distance(other, plain), 1e-6)
        yield Finding(what, error <= tolerance, f"{error:.1e}, at most {tolerance:.1e}")


def steps_checks(device: torch.device, sizes: Sizes) -> Iterator[tuple[str, Callable]]:
    """(name, check) of many steps of each task in each type."""
    for task in TASKS:
        for name in TYPES:
            yield f"{task}, {name}", functools.partial(many_steps, task, name, device, sizes)
    for task in TASKS if device.type == "cuda" else ():
        for name in TYPES:
            yield f"{task}, {name}, CUDA graphs", functools.partial(graph_steps, task, name, device, sizes)


def compiled_inference(name: str, tolerance: float, device: torch.device, sizes: Sizes) -> Iterator[Finding]:
    """Several images through the compiled network, all compared afterwards: a replayed graph must not overwrite."""
    precision = Precision(TYPES[name].type, device)
    network = make_network("train", sizes.depth).train()
    if precision.low is None:  # in 16 bits these random weights would amplify each rounding to a third of the logits
        set_bn_momentum(network, 1.0)
        network(make_batch(sizes)[0])  # statistics of a batch, without which the deep taps are nearly constant
    precision.place(network)
    eager, fast = (for_inference(network, compiled, precision.low) for compiled in (False, True))
    images = [make_batch(sizes, seed)[0].to(device) for seed in range(4)]
    with tf32(TYPES[name].tf32), precision.autocast():
        results = [[flat([forward(image)]) for image in images] for forward in (eager, fast)]
        replayed = [fast(image) for image in images]
    error = max(map(distance, map(lambda logits: flat([logits]), replayed), results[0]))
    error = max(error, *map(distance, results[1], results[0]))
    yield Finding("", error <= tolerance, f"{error:.1e}, at most {tolerance:.0e}")


def compile_checks(device: torch.device, sizes: Sizes) -> Iterator[tuple[str, Callable]]:
    """(name, check) of compiled inference (on a GPU: replayed CUDA graphs) and of compiled steps."""
    for name, tolerance in (("float32", 1e-4), ("bfloat16", 5e-2)):
        yield f"inference, {name}", functools.partial(compiled_inference, name, tolerance, device, sizes)
    for task in TASKS:
        if device.type == "cpu":
            yield f"{task} step", lambda: [Finding("", None, "compiling it takes a CPU many minutes")]
            continue
        yield f"{task} step, float32", functools.partial(Parity(task, device, sizes).check, "float32", compiled=True)
