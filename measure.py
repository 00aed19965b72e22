"""Measure a network: parameters, multiply-adds, time, images a second and peak memory, and how they were measured."""
import argparse
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from models import SparseMask, connectivity
from models.backbones import make_backbone
from models.inference import for_inference
from models.transfer import load_for_encoder
from utils.checkpoint import EXPORTED, read_checkpoint
from utils.cli import run_command
from utils.engine_options import add_trusted_option
from utils.errors import InputError
from utils.exported import ExportedFile
from utils.hardware import describe_device, warn_of_slow_type
from utils.measuring import count_multiply_adds, multiply_adds, timed
from utils.onnx_costs import onnx_costs
from utils.options import (
    HelpFormatter,
    add_class_options,
    add_device_options,
    add_mask_encoder_option,
    add_model_options,
    check_numbers,
    check_part_names,
    check_size,
    require_options,
)
from utils.runtime import (
    Precision,
    explain_out_of_memory,
    peak_of_process,
    reset_peak_of_process,
    select_device,
)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="measure.py", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("source", nargs="?", help="a mask (.npy, .txt, or one of "
                                       f"{', '.join(connectivity.NAMED)}), a checkpoint of either kind, or a file "
                                                  "of export.py; without it, the taps of --backbone_name are listed")
    parser.add_argument("--size", type=int, nargs=2, default=[512, 512], metavar=("H", "W"), help="pixels")
    parser.add_argument("--batch_size", type=int, default=1, help="images")
    parser.add_argument("--runs", type=int, default=20, help="timed runs, of which the median counts")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network first")
    group = parser.add_argument_group("model (of a checkpoint: only parts of your own)")
    add_class_options(group, names=False)
    add_model_options(group, strengths=True)
    add_mask_encoder_option(group)
    group = parser.add_argument_group("run")
    add_device_options(group)
    add_trusted_option(group)
    return parser


def check_args(args: argparse.Namespace) -> None:
    """Raises InputError for sizes and numbers that cannot be."""
    for length in args.size:
        check_size(length, "--size")
    check_numbers(args, ("batch_size", "runs", "depth", "n_class"), at_least=1)
    check_part_names(args)


def build_network(args: argparse.Namespace, log: Callable[[str], None] = lambda _: None) -> nn.Module:
    """The network that args.source names: of a mask with random weights, of a checkpoint with its own.

    log: gets the lines on a mask that is carried over to another encoder.
    """
    if connectivity.is_mask(args.source):
        mask, lines = load_for_encoder(args.source, make_backbone(args.backbone_name).strides, args.mask_encoder)
        for line in lines:
            log(line)
        return SparseMask(mask, args.backbone_name, args.depth, args.n_class, args.connection, args.fusion, args.head)
    return require_options(read_checkpoint(args.source), args).build()


def describe_taps(name: str) -> str:
    """The taps of an encoder, what a connectivity calls them, and its parameters: a few lines."""
    backbone = make_backbone(name)
    parameters = sum(p.numel() for p in backbone.parameters())
    lines = [f"{name}: {len(backbone.channels)} taps, deepest first; {parameters:,} parameters"]
    lines += [f"E[{i}]  stride {stride:>2}  {channels:>4} channels"
              for i, (stride, channels) in enumerate(zip(backbone.strides, backbone.channels, strict=True))]
    return "\n".join(lines)


def measure_file(args: argparse.Namespace) -> None:
    """Prints what a network in a file of export.py costs."""
    file = require_options(ExportedFile(args.source, args.trusted), args)
    if args.type != "float32" or args.compile:
        raise InputError(f"{args.source} runs as it was exported, in the types that it has; leave --type and --compile "
                         f"out")
    parameters = file.network.opened.parameters
    if parameters is None:
        parameters, work = onnx_costs(args.source, args.size)
    else:
        work = count_multiply_adds(file.network, args.size)
    image = torch.randn(args.batch_size, 3, *args.size)
    seconds = timed(lambda: file.network(image), args.runs)
    rows = (("network", f"{connectivity.summary(file.connectivity)}; {file.num_classes} classes"),
            ("parameters", f"{parameters:,} of convolutions"), ("multiply-adds", f"{work / 1e9:.2f} G an image"),
            ("file", f"{Path(args.source).stat().st_size / 2 ** 20:.1f} MiB"),
            ("time", f"{1000 * seconds:.1f} ms a batch"), ("throughput", f"{args.batch_size / seconds:.1f} images/s"))
    for name, value in rows:
        print(f"{name:<14} {value}")
    print(f"measured with images of {'x'.join(map(str, args.size))}, batch {args.batch_size}: image to "
          f"{file.network.output}, median of {args.runs} runs, on {describe_device(torch.device('cpu'))}, "
          f"{file.network.runtime}")


def make_call(args: argparse.Namespace, network: nn.Module, device: torch.device) -> Callable[[], None]:
    """The network made ready on the device: a function without arguments that runs one batch and waits for it."""
    precision = Precision(args.type, device)
    forward = for_inference(precision.place(network), args.compile, precision.low)
    image = torch.randn(args.batch_size, 3, *args.size, device=device, dtype=precision.dtype)
    image = image.to(memory_format=torch.channels_last)

    def call():
        with precision.autocast(), torch.no_grad():
            forward(image)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return call


def peak_memory(args: argparse.Namespace, device: torch.device, queue) -> None:
    """Puts into the queue the bytes by which the first passes raise the memory of a fresh process, or of the GPU."""
    network = build_network(args)
    if device.type == "cuda":
        call = make_call(args, network, device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        queue.put(torch.cuda.max_memory_allocated(device))
        return
    try:
        call = make_call(args, network, device)
        before = reset_peak_of_process()  # making the network ready takes memory too
        call()
    except InputError:  # no compiler, say: the process that measures the time reports it
        return
    queue.put(peak_of_process() - before)


def measured_apart(args: argparse.Namespace, device: torch.device) -> int | None:
    """peak_memory in a process of its own: what this one has used before does not count. None if it failed there."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=peak_memory, args=(args, device, queue), daemon=True)
    process.start()
    process.join()
    return None if queue.empty() else queue.get()


def main(args: argparse.Namespace) -> None:
    """Prints what the network costs."""
    check_args(args)
    if args.source is None:
        print(describe_taps(args.backbone_name))
        return
    if Path(args.source).suffix in EXPORTED:
        measure_file(args)
        return
    network = build_network(args, print)
    total = sum(p.numel() for p in network.parameters())
    encoder = sum(p.numel() for p in network.backbone.parameters())
    work = multiply_adds(network, args.size)
    device = select_device(args.gpu, log=lambda _: None)  # the last line names it
    convolutions = warn_of_slow_type(args.type, device)
    with explain_out_of_memory("give a smaller --batch_size or --size"):
        memory = measured_apart(args, device)
        seconds = timed(make_call(args, network, device), args.runs)
    size = "x".join(map(str, args.size))
    kind = "all connections with their strengths" if not hasattr(network, "connectivity") else \
        connectivity.summary(network.connectivity)
    split = f"{encoder / 1e6:.2f} M encoder + {(total - encoder) / 1e6:.2f} M decoder and head"
    rows = (("network", f"{kind}; {network.parts['backbone']}, depth {network.depth}, {network.num_classes} classes"),
            ("parameters", f"{total:,} ({split})"),
            ("multiply-adds", f"{work / 1e9:.2f} G an image"),
            ("time", f"{1000 * seconds:.1f} ms a batch"),
            ("throughput", f"{args.batch_size / seconds:.1f} images/s"),
            ("peak memory", "not measured" if memory is None else
             f"{memory / 2 ** 20:.0f} MiB " + ("allocated on the GPU, weights included" if device.type == "cuda" else
                                               "more than before the first batch")))
    if convolutions:
        rows += (("convolution", f"{1000 * convolutions[0]:.2g} ms in float32, {1000 * convolutions[1]:.2g} ms in "
                                 f"{args.type}: 1x1, 64 channels, 65x65"),)
    for name, value in rows:
        print(f"{name:<14} {value}")
    print(f"measured with images of {size}, batch {args.batch_size}, {args.type}, channels last, "
          f"BN folded{', compiled' if args.compile else ''}: image to logits at 1/{network.backbone.strides[-1]} of "
          f"its size, median of {args.runs} runs, on {describe_device(device)}, PyTorch "
          f"{torch.__version__.partition('+')[0]}; multiply-adds are those of convolutions and matrix products")


if __name__ == "__main__":
    run_command(main, build_parser())
