"""Speed and memory against the plain reading of the method: `make bench`. Prints Markdown tables.

    python -m benchmarks.bench [--device cuda] [--only steps inference loading evaluation memory engines growth]

Every time is the median of several runs; what is compared runs in one process, in turns, with the same number of
threads and the same allocator. Evaluation is timed as a user sees it: the whole command, interpreter included.
"""
import argparse
import functools
import multiprocessing
import statistics

import torch

from benchmarks.engines import COLUMNS, PLAIN, engines_table
from benchmarks.files import evaluation, loading
from benchmarks.plain import plain_forward
from benchmarks.timing import machine, median_times, milliseconds, print_table
from models import FullyDenseNetwork, SparseMask, connectivity
from models.inference import for_inference
from models.losses import resize_logits
from utils.cli import run_command
from utils.engine import search_losses, train_losses
from utils.errors import InputError
from utils.options import check_numbers, check_size
from utils.runtime import Precision, keep_freed_memory, select_device
from utils.step_graphs import StepGraphs

SPARSE = 0.01
PARTS = ("steps", "inference", "loading", "evaluation", "memory", "engines", "growth")


def make_step(kind, device, size, batch, dtype="float32", compiled=False, graphs=None, prepare=lambda network: None):
    """A function that does one optimizer step. graphs: StepGraphs, if it runs as CUDA graphs. prepare: called with the
    network.

    kind: "search", "train", their "plain ...", "search by modules" (without models/folded_search.py), or "encoder".
    """
    torch.manual_seed(0)
    precision = Precision(dtype, device)
    search, plain = "search" in kind, "plain" in kind
    network = FullyDenseNetwork() if search else SparseMask(connectivity.load("published"))
    prepare(network)
    network = (network.to(device) if plain else precision.place(network)).train()
    image, label = torch.randn(batch, 3, size, size), torch.randint(0, 21, (batch, size, size)).to(device)
    image = image.to(device, memory_format=torch.contiguous_format if plain else torch.channels_last)
    if kind == "search by modules":
        network.decoders.stage(0).connection(0, 0).register_forward_hook(lambda *_: None)
    if compiled:
        network.compile()
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1e-3, momentum=0.9,
                                weight_decay=4e-5, fused=not plain)
    if plain:
        model = functools.partial(plain_forward, network, recompute=search)
        model.draw_strengths = getattr(network, "draw_strengths", None)
    losses = functools.partial(search_losses, sparse_weight=SPARSE) if search else train_losses

    def forward(image, label):
        if kind == "encoder":
            loss = sum(tap.float().mean() for tap in network.backbone(image))
        else:
            with precision.autocast():
                loss = losses(model if plain else network, image, label)[0].total
        return loss, loss.detach(), None

    def step():
        graph = graphs and graphs.find(forward, optimizer, image, label)
        if graph:
            graph.forward(image, label)
            graph.backward()
        else:
            optimizer.zero_grad(set_to_none=True)
            forward(image, label)[0].backward()
        optimizer.step()
        if search:
            network.clamp_strengths()
    return step


def steps(device, sync, eager=False, size=None, batch=None):
    """Rows of the search and training steps. eager: without the compiled ones."""
    usual = (513, 16) if device.type == "cuda" else (257, 2)
    size, batch = size or usual[0], batch or usual[1]
    place = f"{size}x{size} batch {batch}"
    for kind in ("search", "train"):
        work = {"plain": make_step(f"plain {kind}", device, size, batch), "ours": make_step(kind, device, size, batch),
                "bf16": make_step(kind, device, size, batch, "bfloat16"),
                "encoder": make_step("encoder", device, size, batch)}
        if kind == "search":
            work["modules"] = make_step("search by modules", device, size, batch)
        if device.type == "cuda":
            for name in ("float32", "bfloat16"):
                work[f"{name}, CUDA graphs"] = make_step(kind, device, size, batch, name, graphs=StepGraphs())
        if device.type == "cuda" and not eager:
            work["compiled"] = make_step(kind, device, size, batch, "bfloat16", compiled=True)
        t = median_times(work, synchronize=sync)
        names = {"ours": "float32", "modules": "float32, without the folded pass", "bf16": "bfloat16",
                 "compiled": "bfloat16, compiled", "encoder": "floor: the encoder alone, float32"}
        for name in work:
            if name != "plain":
                yield f"{kind} step, {place}, {names.get(name, name)}", t["plain"], t[name]


def inference(device, sync, eager=False):
    """Rows of the inference at 512x512, to the predicted classes. eager: without the compiled ones."""
    batches = (1, 32) if device.type == "cuda" else (1,)
    plain = SparseMask(connectivity.load("published")).to(device).eval()
    for batch in batches:
        image = torch.randn(batch, 3, 512, 512, device=device)
        last = image.to(memory_format=torch.channels_last)
        network = Precision("float32", device).place(SparseMask(connectivity.load("published")))
        network.load_state_dict(plain.state_dict())
        low = Precision("bfloat16", device)
        label = torch.empty(batch, 512, 512)
        forwards = {"plain": (functools.partial(plain_forward, plain), image, False),
                    "float32": (for_inference(network), last, False),
                    "float32, compiled": (for_inference(network, True), last, False),
                    "bfloat16": (for_inference(network, dtype=torch.bfloat16), last, True),
                    "bfloat16, compiled": (for_inference(network, True, torch.bfloat16), last, True),
                    "floor: the encoder alone, float32, compiled": (for_inference(network.backbone, True), last, False)}

        @torch.no_grad()
        def call(forward, x, in_low, low=low, label=label):
            with low.autocast() if in_low else torch.autocast(device.type, enabled=False):
                logits = forward(x)
            return logits if isinstance(logits, (list, tuple)) else resize_logits(logits, label).argmax(1)

        t = median_times({name: functools.partial(call, *f) for name, f in forwards.items()
                          if not (eager and "compiled" in name)}, synchronize=sync)
        for name in list(t)[1:]:
            yield f"inference, 512x512 batch {batch}, {name}", t["plain"], t[name]


def peak_of_steps(kind, device, size, batch, dtype, queue):
    """In a process of its own: bytes that three steps need at most, above what the process had before."""
    import resource
    torch.ones(8, device=device)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    step = make_step(kind, device, size, batch, dtype)
    for _ in range(3):
        step()
    cuda = device.type == "cuda"
    queue.put(torch.cuda.max_memory_allocated() if cuda else
              resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)


def memory(device):
    """Rows (name, plain MiB, ours MiB) of the steps' peak memory."""
    size, batch = (513, 16) if device.type == "cuda" else (257, 2)
    context = multiprocessing.get_context("spawn")

    def peak(kind, dtype):
        queue = context.Queue()
        process = context.Process(target=peak_of_steps, args=(kind, device, size, batch, dtype, queue))
        process.start()
        value = queue.get(timeout=600)
        process.join()
        return value / 2 ** 20

    for kind in ("search", "train"):
        plain = statistics.median(peak(f"plain {kind}", "float32") for _ in range(3))
        for dtype in ("float32", "bfloat16"):
            ours = statistics.median(peak(kind, dtype) for _ in range(3))
            yield f"{kind} step, {size}x{size} batch {batch}, {dtype}", plain, ours


def growth(device, sync):
    """Rows (name, seconds of a training step, of inference) as batch, side and connections grow."""
    half = connectivity.full()
    half[:, :, 0] = False  # the decoder side alone
    cases = [(f"batch {n}, 257x257", "published", n, 257) for n in (1, 4, 16)]
    cases += [(f"{side}x{side}, batch 1", "published", 1, side) for side in (513, 1025)]
    cases += [(f"{int(c.sum())} connections, 257x257, batch 4", c, 4, 257)
              for c in (half, connectivity.full())]
    for name, mask, batch, side in cases:
        mask = connectivity.load(mask) if isinstance(mask, str) else mask
        precision = Precision("float32", device)
        network = precision.place(SparseMask(mask)).train()
        image = torch.randn(batch, 3, side, side, device=device).to(memory_format=torch.channels_last)
        label = torch.randint(0, 21, (batch, side, side), device=device)

        def step(network=network, image=image, label=label):
            network.zero_grad()
            train_losses(network, image, label)[0].total.backward()

        def infer(fast, image=image, label=label):
            return resize_logits(fast(image), label).argmax(1)

        work = {"step": step, "inference": functools.partial(infer, for_inference(network))}
        t = median_times(work, 3, 2, sync)
        yield name, t["step"], t["inference"]


def main(args):
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device is cuda, but PyTorch sees no CUDA device here; leave the option out for the CPU")
    check_numbers(args, ("threads", "batch_size"), at_least=1)
    if args.crop_size is not None:
        check_size(args.crop_size, "--crop_size")
    # on a GPU both sides have the commands' precision of matrix products and tuned convolutions
    device = select_device(0) if args.device == "cuda" else torch.device("cpu")
    torch.backends.cudnn.benchmark = device.type == "cuda"
    torch.set_num_threads(args.threads)
    sync = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    if args.keep_memory:
        keep_freed_memory()
    print(machine(device) + (", freed memory kept" if args.keep_memory else ""))
    if "memory" in args.only:  # first: a new process's peak begins at that of the one that started it
        print_table(("peak memory", "plain", "ours", "ratio"), memory(device), lambda name, plain, ours: (
            name, f"{plain:.0f} MiB", f"{ours:.0f} MiB", f"{plain / ours:.1f}x"))
    speed = {"steps": lambda: steps(device, sync, args.eager, args.crop_size, args.batch_size),
             "inference": lambda: inference(device, sync, args.eager), "loading": loading,
             "evaluation": lambda: evaluation(device)}
    if not speed.keys().isdisjoint(args.only):
        rows = (row for part in speed if part in args.only for row in speed[part]())
        print_table(("work", "plain", "ours", "ratio"), rows, lambda name, plain, ours: (
            name, milliseconds(plain), milliseconds(ours), f"{plain / ours:.1f}x"))
    if "engines" in args.only:
        rows = list(engines_table(device, functools.partial(median_times, synchronize=sync)))
        plain = next(times["PyTorch"] for name, _, _, times in rows if name == PLAIN)
        print_table(("image to classes, 512x512 batch 1", "parameters", "multiply-adds", *COLUMNS), rows,
                    lambda name, parameters, operations, times: (
                        name, f"{parameters / 1e6:.2f} M", f"{operations / 1e9:.2f} G",
                        *(f"{milliseconds(times[column])} ({plain / times[column]:.1f}x)" if column in times else ""
                          for column in COLUMNS)))
    if "growth" in args.only:
        print_table(("ours, published connectivity unless said", "forward and backward", "inference"),
                    growth(device, sync), lambda name, step, forward: (name, milliseconds(step), milliseconds(forward)))


def build_parser():
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: PyTorch's)")
    parser.add_argument("--keep_memory", action="store_true",
                        help="let both sides keep freed memory, as our commands do on a CPU (default: neither)")
    parser.add_argument("--eager", action="store_true", help="leave out what is compiled, which takes minutes")
    parser.add_argument("--crop_size", type=int, help="of the table steps (default: 513 on a GPU, 257 on a CPU)")
    parser.add_argument("--batch_size", type=int, help="of the table steps (default: 16 on a GPU, 2 on a CPU)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="some of the tables (default: all)")
    return parser


if __name__ == "__main__":
    run_command(main, build_parser())
