"""A search step on a CPU with denormal numbers and with these flushed to zero, by the strength of dropped connections.

    python -m benchmarks.denormals

Prints a Markdown table. The connections of the published connectivity have the strength 1 - p, the others p. It takes
one thread, since each thread has a setting of its own.
"""
import argparse
import functools
import math

import torch

from benchmarks.bench import make_step
from benchmarks.timing import machine, median_times, milliseconds, print_table
from models import connectivity
from utils.cli import run_command
from utils.options import HelpFormatter, check_numbers

STRENGTHS = (0.5, 1e-5, 1e-10, 1e-15, 1e-20, 1e-25, 1e-30)
SIZE, BATCH = 257, 2


def build_parser():
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.denormals", description=__doc__.splitlines()[0],
                                     formatter_class=HelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="in which both take turns, three steps each")
    return parser


def set_strengths(p, network):
    """Every strength of a search network: 1 - p where the published connectivity has a connection, p elsewhere."""
    network.strengths.anneal(1, 50)
    logit = math.log(p / (1 - p)) / 50
    for stage, parameter in enumerate(network.strength_parameters()):
        kept = torch.from_numpy(connectivity.published()[stage, :stage + 1])
        parameter.data.fill_(logit)[kept] = -logit


def row(p, rounds):
    """One line of the table."""
    step = make_step("search", torch.device("cpu"), SIZE, BATCH, prepare=functools.partial(set_strengths, p))

    def with_setting(flush):
        torch.set_flush_denormal(flush)
        step()

    times = median_times({"with": lambda: with_setting(False), "without": lambda: with_setting(True)}, rounds)
    return p, times["with"], times["without"]


def main(args):
    """Measures and prints."""
    check_numbers(args, ("rounds",), at_least=1)
    torch.set_num_threads(1)
    print(machine(torch.device("cpu")))
    print_table(["strength of dropped connections", "with denormals", "flushed to zero", "ratio"],
                (row(p, args.rounds) for p in STRENGTHS),
                lambda p, slow, fast: (f"{p:g}", milliseconds(slow), milliseconds(fast), f"{slow / fast:.1f}x"))


if __name__ == "__main__":
    run_command(main, build_parser())
