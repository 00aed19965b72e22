"""Speed and memory against another checkout of this repository, both in one process: a Markdown table.

    git worktree add ../before COMMIT
    python -m benchmarks.paired --against ../before

A step is forward, losses, backward and optimizer; an inference is image to classes. Each figure is the median of
several rounds, in which the two take turns; of the ratios, too, the median of the rounds is printed. Peak memory is
measured in processes of their own.
"""
import argparse
import importlib
import multiprocessing
import statistics
import sys
import time
from pathlib import Path

import torch

from benchmarks.timing import machine, milliseconds, print_table
from utils.progress import progress_bar
from utils.runtime import peak_of_process

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("models", "utils", "VOC12")
NAMES = ("models", "models.connectivity", "models.losses", "models.inference")
KINDS = ("search", "train", "inference")
TYPES = ("float32", "bfloat16")


def load_version(root: Path) -> dict:
    """The modules of NAMES as the checkout `root` has them, whatever other version is loaded already."""
    for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
        del sys.modules[name]
    sys.path.insert(0, str(root))
    try:
        return {name: importlib.import_module(name) for name in NAMES}
    finally:
        sys.path.remove(str(root))


def make_work(version: dict, kind: str, low: bool):
    """A function without arguments that does one step or one inference of that version. low: bfloat16 (autocast)."""
    models, losses = version["models"], version["models.losses"]
    torch.manual_seed(0)
    network = models.FullyDenseNetwork() if kind == "search" else \
        models.SparseMask(version["models.connectivity"].load("published"))
    network = network.to(memory_format=torch.channels_last)
    size, batch = (512, 1) if kind == "inference" else (257, 2)
    image = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    label = torch.randint(0, 21, (batch, size, size))
    if kind == "inference":
        forward = version["models.inference"].for_inference(network, dtype=torch.bfloat16 if low else None)

        @torch.no_grad()
        def infer():
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                return losses.resize_logits(forward(image), label).argmax(1)
        return infer
    network.train()
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1e-3, momentum=0.9,
                                weight_decay=4e-5, fused=True)

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            strengths = [network.draw_strengths()] if kind == "search" else []
            loss = losses.pixel_cross_entropy(losses.resize_logits(network(image, *strengths), label), label)
            loss = loss + 0.01 * sum(map(losses.total_sparse_loss, strengths))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return step


def compare(before: dict, now: dict, kind: str, low: bool, rounds: int) -> tuple[float, float, float]:
    """(seconds before, seconds now, ratio before / now): medians over the rounds."""
    work = [make_work(version, kind, low) for version in (before, now)]
    times = [[], []]
    for i in progress_bar(range(-3, rounds), desc=kind, leave=False):
        for which in ((0, 1) if i % 2 else (1, 0)):
            start = time.perf_counter()
            work[which]()
            if i >= 0:
                times[which].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(*times, strict=True)]
    return statistics.median(times[0]), statistics.median(times[1]), statistics.median(ratios)


def peak(root: Path, kind: str, low: bool, threads: int, queue) -> None:
    """In a process of its own: puts into the queue the MiB that four rounds need beyond what the process had before."""
    torch.set_num_threads(threads)
    version = load_version(root)
    torch.ones(8).sum()
    before = peak_of_process()
    work = make_work(version, kind, low)
    for _ in range(4):
        work()
    queue.put((peak_of_process() - before) / 2 ** 20)


def memory(root: Path, kind: str, low: bool, threads: int) -> float:
    """Median MiB of three processes."""
    context = multiprocessing.get_context("spawn")
    found = []
    for _ in range(3):
        queue = context.SimpleQueue()
        process = context.Process(target=peak, args=(root, kind, low, threads, queue))
        process.start()
        found.append(queue.get())
        process.join()
    return statistics.median(found)


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paired", description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, required=True, help="the other checkout")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--types", nargs="+", choices=TYPES, default=TYPES)
    parser.add_argument("--no_memory", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    before, now = load_version(args.against.resolve()), load_version(ROOT)
    print(machine(torch.device("cpu")))
    print_table(("work", "before", "now", "speed, before / now"),
                ((f"{kind}, {name}", *compare(before, now, kind, name == "bfloat16", args.rounds))
                 for kind in args.kinds for name in args.types),
                lambda name, a, b, ratio: (name, milliseconds(a), milliseconds(b), f"{ratio:.2f}x"))
    if not args.no_memory:
        print_table(("peak memory", "before", "now", "now / before"),
                    ((f"{kind}, {name}", *(memory(root, kind, name == "bfloat16", args.threads)
                                           for root in (args.against.resolve(), ROOT)))
                     for kind in args.kinds for name in args.types),
                    lambda name, a, b: (name, f"{a:.0f} MiB", f"{b:.0f} MiB", f"{b / a:.2f}x"))


if __name__ == "__main__":
    main()
