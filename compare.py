"""Compare connectivities: search, train and evaluate all entries with all seeds in the same way, and tabulate them."""
import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from models import SparseMask, connectivity
from models.backbones import make_backbone
from models.components import is_own
from models.inference import for_inference
from utils import comparison_rows
from utils.cli import run_command
from utils.comparison import FORMS, Entry, Job, Plan, parse_entries, parse_entry, parts_of
from utils.comparison_masks import masks_without, random_masks
from utils.comparison_table import ABLATION, ablation_table, remarks, summarize, to_markdown
from utils.errors import InputError, first_line
from utils.files import write_atomically
from utils.hardware import describe_device
from utils.job_runner import LOG, JobRunner
from utils.measuring import timed
from utils.options import NO_LIST, HelpFormatter, check_numbers
from utils.parallel import count_cores
from utils.runtime import Precision, select_device
from utils.stopping import STOPPED
from utils.train_options import add_training_options

TABLE = "table.md"
# The paper's table 1 (section 4.3), MobileNetV2 on VOC val: its entries, and their mIoU in percent.
PAPER = {"search": 73.18, "fcn": 63.80, "unet": 64.72, "maskconnect3": 70.34, "sparseacn": 72.23, "deeplabv3": 72.51,
         "full": 72.72}
PRESETS = {"paper": {
    "entries": ["search", "fcn", "unet", "maskconnect:3", "sparseacn", "deeplabv3", "full"], "seeds": [0],
    "finetune_options": "--training_list VOC12/data/train.txt --lr 0.0005",
    "eval_options": "--scales 0.5 0.75 1 1.25 1.5 1.75 --flip"}}


def build_parser() -> argparse.ArgumentParser:
    """The command line: its own options, and those of train_sparse_mask.py, which all runs share."""
    parser = argparse.ArgumentParser(prog="compare.py", description=__doc__, formatter_class=HelpFormatter,
                                     allow_abbrev=False)
    add = parser.add_argument_group("comparison").add_argument
    add("--entries", nargs="+", metavar="ENTRY", default=["search", "published", "unet", "fcn", "random:5"],
        help=f"what is compared: {FORMS}")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="each entry runs once with each; random "
                                                                "connectivity number K runs with seed K")
    add("--out", required=True, metavar="DIR", help="folder of the runs, of table.md and comparison.json. What is "
                                                    "there already is not run again")
    add("--search_options", metavar="TEXT", default="",
        help="further options of the searches, as in --search_options=\"--max_epoch 10\"")
    add("--finetune_options", metavar="TEXT",
        help="train each network a second time, from its own weights, with these further options")
    add("--eval_options", metavar="TEXT", default="",
        help="further options of the evaluations, as in --eval_options=--flip")
    add("--boundary", type=int, metavar="PIXELS", default=5,
        help="also evaluate the pixels this near to a boundary of the labels; 0: do not")
    add("--retrain", action="store_true", help="with without:ENTRY: also train the network of the first seed anew "
                                               "without each of its connections")
    add("--size", type=int, nargs=2, default=[512, 512], metavar=("H", "W"),
        help="of the image that multiply-adds and time are measured with")
    add("--preset", choices=PRESETS, help="paper: entries, seed, second training and evaluation of the paper's table "
                                          "1; options that are given replace those of the preset")
    add("--jobs", type=int, default=1, help="runs side by side")
    add("--threads", type=int, help="of each run on a CPU (default: the cores divided by --jobs)")
    add("--print_commands", action="store_true", help="run nothing: print what is left, a line for each entry and "
                                                      "seed, for another program to run")
    add_training_options(parser)
    return parser


def check_args(args: argparse.Namespace) -> None:
    """Raises InputError for options that contradict each other or are out of range."""
    check_numbers(args, ("jobs", "threads"), at_least=1)
    check_numbers(args, ("boundary",), at_least=0)
    if len(set(args.seeds)) < len(args.seeds):
        raise InputError(f"--seeds are {' '.join(map(str, args.seeds))}: one repeats, and would count twice; give each "
                         f"once")
    if args.eval_list == NO_LIST:
        raise InputError("a comparison needs images to evaluate; give a file with their names, one a line",
                         about="eval_list")


class Comparison:
    """The plan, and the results so far."""

    def __init__(self, args: argparse.Namespace, settings: Mapping):
        self.args, self.settings, self.out = args, settings, Path(args.out)
        self.parts = parts_of(settings)
        boundary = f"--boundary {args.boundary} " if args.boundary else ""
        self.plan = Plan(parse_entries(args.entries), args.seeds, self.out, settings, args.search_options,
                         args.finetune_options, f"{boundary}{args.eval_options}".strip(), self.find_random,
                         self.find_without)
        self.plan.check()
        described = comparison_rows.describe_settings(settings)
        described |= {name: getattr(args, name) for name in ("search_options", "finetune_options", "eval_options",
                                                             "boundary")}
        self.content = comparison_rows.load(self.out, described, settings_of(argparse.Namespace()))

    def find_jobs(self) -> tuple[list[Job], list[Job]]:
        """All jobs that are known, and those that are done, whose rows are then stored."""
        known = -1
        while len(self.content["rows"]) != known:  # what is done may make others possible, which may be done too
            known, jobs = len(self.content["rows"]), self.plan.jobs()
            self.content = comparison_rows.collect(self.content, jobs)
            if len(self.content["rows"]) != known:
                comparison_rows.save(self.out, self.content)
        done = {(row["entry"], row["seed"]) for row in self.content["rows"]}
        return jobs, [job for job in jobs if (job.entry, job.seed) in done]

    def find_random(self, entry: Entry) -> list[Path] | None:
        """The files of the random masks, which are drawn when the networks are known whose cost they have to have."""
        searched = any(other.text == "search" for other in self.plan.entries)
        masks = self.masks_of(parse_entry(entry.other or ("search" if searched else "published")))
        if masks is None:
            return None
        return random_masks(self.out / entry.name, entry.number, masks,
                            self.network(connectivity.full(len(masks[0])), {}), self.args.size)

    def masks_of(self, entry: Entry) -> list[np.ndarray] | None:
        """An entry's connectivities: the one that it names, or those that its search found, with each seed.

        What a search found is known once it is pruned, before its network is trained; None until then.
        """
        if entry.kind == "mask":
            return [connectivity.load(entry.text, len(make_backbone(self.settings["backbone_name"]).channels))]
        rows = {row["seed"]: row for row in self.content["rows"] if row["entry"] == entry.name}
        files = self.plan.files_of_search(entry)
        if any(seed not in rows and not files[seed].exists() for seed in self.args.seeds):
            return None
        return [comparison_rows.mask_of(rows[seed]) if seed in rows else connectivity.load(str(files[seed]))
                for seed in self.args.seeds]

    def find_without(self, entry: Entry) -> dict[str, Path]:
        """The files of an entry's masks without each of its connections, if those are to be trained anew."""
        place = parse_entry(entry.other).name, self.args.seeds[0]
        row = next((row for row in self.content["rows"] if (row["entry"], row["seed"]) == place), None)
        if not self.args.retrain or row is None:
            return {}
        return masks_without(self.out / entry.name, comparison_rows.mask_of(row))

    def network(self, mask: np.ndarray, parts: Mapping) -> SparseMask:
        """A network with random weights. parts: names by kind, beside the shared ones; none is imported for them."""
        known = {kind: name for kind, name in parts.items() if not is_own(name)}
        return SparseMask(mask, depth=self.settings["depth"], num_classes=self.settings["n_class"],
                          **{**self.parts, **known})

    def build(self, row: Mapping) -> SparseMask:
        """The network of a row."""
        return self.network(comparison_rows.mask_of(row), row["parts"])

    def measure_times(self) -> None:
        """Times one network of each entry in this process, one after the other, and stores the seconds."""
        device = select_device(self.args.gpu, log=lambda _: None)
        precision = Precision("float32", device)
        seconds = {}
        for name, rows in comparison_rows.group_rows(self.content["rows"]).items():
            if not name.startswith(ABLATION):
                forward = for_inference(precision.place(self.build(rows[0])))
                image = torch.randn(1, 3, *self.args.size, device=device).to(memory_format=torch.channels_last)

                def call(forward=forward, image=image):
                    with torch.no_grad():
                        forward(image)
                    if device.type == "cuda":
                        torch.cuda.synchronize(device)

                seconds[name] = timed(call, 20)
        self.content = {**self.content, "seconds": seconds, "timed_on": describe_device(device)}
        comparison_rows.save(self.out, self.content)

    def report(self) -> str:
        """Writes table.md, its picture where matplotlib is installed, and returns the text of the table."""
        rows = self.content["rows"]
        if not rows:
            return "no run has ended yet, so there is no table"
        entries = summarize(self.content, self.build, self.args.size)
        size = "x".join(map(str, self.args.size))
        text = to_markdown(entries, self.args.boundary, PAPER if self.args.preset else None)
        notes = [f"Mean and standard deviation over the runs. Multiply-adds are those of a {size} image, encoder "
                 f"included."]
        if "timed_on" in self.content:
            notes.append(f"The time is the median of 20 such images on {self.content['timed_on']}.")
        parts = [text, " ".join(notes), *remarks(self.content)]
        for row in rows:
            if "without_each" in row:
                anew = {other["entry"].removeprefix(f"{row['entry']} "): other["m_iou"] for other in rows
                        if other["entry"].startswith(f"{row['entry']} ") and other["seed"] == row["seed"]}
                parts.append(f"{row['entry'].removeprefix(ABLATION)}, seed {row['seed']}, without one connection:\n\n"
                             f"{ablation_table(row, anew)}")
        text = "\n\n".join(parts)
        with write_atomically(self.out / TABLE) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        written = f"{text}\n\nwritten: {self.out / TABLE}, {comparison_rows.FILE}"
        try:
            from utils import drawing
            from utils.comparison_drawing import draw_comparison
        except Exception as error:  # missing or broken, with errors of any type
            return f"{written}; no picture, since matplotlib cannot be used here ({first_line(error)})"
        runs = sum(entry["runs"] for entry in entries)
        figure = draw_comparison(entries, "1 run" if runs == 1 else f"{runs} runs")
        svg, png = drawing.save(figure, self.out / "comparison")
        return f"{written}, {svg.name} and {png.name}"


def settings_of(args: argparse.Namespace) -> dict:
    """The options that train_sparse_mask.py has too, by name; one that args lacks has its default."""
    parser = argparse.ArgumentParser()
    add_training_options(parser)
    return {action.dest: getattr(args, action.dest, action.default) for action in parser._actions
            if action.dest != "help"}


def main(args: argparse.Namespace) -> int:
    """Runs what is left of the comparison, and prints its table. Returns the exit code."""
    for name, value in PRESETS.get(args.preset, {}).items():
        if name not in args.given:
            setattr(args, name, value)
    check_args(args)
    comparison = Comparison(args, settings_of(args))
    jobs, done = comparison.find_jobs()
    if args.print_commands:
        left = [job for job in jobs if job not in done and (job.needs is None or job.needs.exists())]
        print("\n".join(" && ".join(job.commands) for job in left))
        later = comparison.plan.waiting() + [f"{job.name} waits for {job.needs}" for job in jobs
                                             if job not in done and job not in left]
        print("".join(f"# {line}: give this command again then\n" for line in later), end="")
        return 0
    threads = args.threads or max(1, count_cores() // args.jobs)
    runner = JobRunner(comparison.find_jobs, args.jobs, threads)
    stopped = runner.run()
    jobs, done = comparison.find_jobs()
    if len(done) == len(jobs) and not comparison.plan.waiting():
        comparison.measure_times()
    print(comparison.report())
    for job, line in runner.failed:
        print(f"failed: {job.name}: {line} ({job.folder / LOG})")
    left = len(jobs) - len(done)
    if left or comparison.plan.waiting():
        print(f"{left} of {len(jobs)} runs are left" + "".join(f"; {line}" for line in comparison.plan.waiting()) +
              "; give the same command to continue")
    return STOPPED if stopped else 1 if runner.failed else 0


if __name__ == "__main__":
    run_command(main, build_parser())
