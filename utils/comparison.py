"""A comparison: its entries, the jobs that they take, and the command lines of each job. Nothing here runs one.

A job is one entry with one seed. Its folder is OUT/ENTRY/seedS, with the run folders `search`, `train` and `finetune`,
and the scores in result.json, which the last of its commands writes. Each command can be given again: it continues.
"""
import argparse
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from models import connectivity
from models.pruning import DEFAULT_THRESHOLD
from utils.errors import InputError
from utils.options import PART_OPTIONS, command_line, own_part_options
from utils.train_options import build_parser, check_args

RESULT = "result.json"
SEARCHES = {  # entries that search: the options of their search, beside the common ones
    "search": "",
    "l1": "--sparse_loss l1",
    # The task alone decides which inputs are strong, and nothing drives the strengths to 0 or 1.
    "maskconnect": "--sparse 0 --beta_end 1",
}
COUNTED = {"random": 5, "maskconnect": 3}  # entries that take a number, as in random:5, and its default
NETWORKS = {"deeplabv3": "--fusion aspp"}  # named connectivities whose network has a part of its own
FORMS = ("search, search:OPTIONS, l1, maskconnect:K, random:K, random:K:ENTRY, without:ENTRY, a mask file, or one of "
         f"{', '.join(connectivity.NAMED)}")


@dataclass(frozen=True)
class Entry:
    """One row of the table. text: as it stands on the command line; name: of its folder; kind: "search" or "mask", or
    "random" or "without", which make further masks or scores out of those of `other`, the text of another entry; for
    "random" it may be empty: then `search`, or without one `published`.
    """
    text: str
    name: str
    kind: str
    options: str = ""  # of its search, or of its training where there is none
    number: int = 0
    other: str = ""


@dataclass
class Job:
    """One entry with one seed. commands: of a shell, in their order; the last one writes `result`."""
    entry: str
    seed: int
    folder: Path
    commands: list
    needs: Path | None = None  # a file that another job writes
    search_parts: Mapping | None = None  # the names of its search's parts, by kind; None: it has no search

    @property
    def result(self) -> Path:
        """Where its scores will be."""
        return self.folder / RESULT

    @property
    def name(self) -> str:
        """For people: "unet, seed 0"."""
        return f"{self.entry}, seed {self.seed}"


def parse_entry(text: str) -> Entry:
    """An entry of the command line. Raises InputError if it is none."""
    kind, _, rest = text.partition(":")
    if kind in COUNTED:
        count, colon, other = rest.partition(":") if kind == "random" else (rest, "", "")
        number = int(count) if count.isdecimal() else COUNTED[kind] if not rest else 0
        if not 1 <= number <= 1000:
            raise InputError(f"the entry {text!r} has no number after the colon; write for example "
                             f"{kind}:{COUNTED[kind]}", about="entries")
        if kind == "maskconnect":
            return Entry(text, f"{kind}{number}", "search", SEARCHES[kind], number)
        if other in NETWORKS:
            raise InputError(f"the entry {text!r}: what {other} costs is not that of its connections alone, so no "
                             f"random ones compare with it; name another entry", about="entries")
        name = f"{kind}-{parse_network(text, other).name}" if colon else kind
        return Entry(text, name, "random", number=number, other=other)
    if kind in SEARCHES:
        name = re.sub(r"[^\w.=-]+", "_", f"{kind} {rest}".strip()).replace("_--", "-")
        return Entry(text, name, "search", f"{SEARCHES[kind]} {rest}".strip())
    if kind == "without" and rest:
        return Entry(text, f"without-{parse_network(text, rest).name}", "without", other=rest)
    if text in connectivity.NAMED:
        return Entry(text, text, "mask", NETWORKS.get(text, ""))
    if text.endswith(connectivity.MASK_SUFFIXES):
        connectivity.load(text)  # now, and not after hours
        return Entry(text, Path(text).stem, "mask")
    raise InputError(f"unknown entry {text!r}; known are {FORMS}", about="entries")


def parse_network(text: str, other: str) -> Entry:
    """The entry `other`, which the entry `text` names. Raises InputError if it is none that has a network."""
    entry = parse_entry(other)
    if entry.kind not in ("search", "mask"):
        raise InputError(f"the entry {text!r} needs a network after its colon; name one, not {other}", about="entries")
    return entry


def parse_entries(texts: Sequence[str]) -> list[Entry]:
    """The entries of the command line. Raises InputError for one that is none, or is there twice."""
    entries = [parse_entry(text) for text in texts]
    for number, entry in enumerate(entries):
        for earlier in entries[:number]:
            if entry.name == earlier.name:
                raise InputError(f"the entries {earlier.text!r} and {entry.text!r} are the same, or their names are; "
                                 f"give one of them", about="entries")
        needs_runs = entry.kind == "without" or entry.other and parse_entry(entry.other).kind == "search"
        if needs_runs and entry.other not in texts:
            raise InputError(f"the entry {entry.text!r} needs the network of {entry.other!r}; add that entry too",
                             about="entries")
    return entries


class Plan:
    """The jobs of a comparison.

    settings: the options that all runs share, by name, as train_sparse_mask.py has them. search, finetune: further
    options, as text, of all searches, and of a second training from the first one's weights (None: there is none).
    evaluation: the options of the evaluation beside the data's, as text. find_random(entry) -> the files of the random
    masks, or None while the networks are not found whose cost they have to have. find_without(entry) -> {name of a
    connection: file of the mask without it}, of those that are trained anew; empty while its network is not known.
    """

    def __init__(self, entries: Sequence[Entry], seeds: Sequence[int], out: Path, settings: Mapping, search: str = "",
                 finetune: str | None = None, evaluation: str = "",
                 find_random: Callable[[Entry], Sequence[Path] | None] = lambda entry: None,
                 find_without: Callable[[Entry], Mapping[str, Path]] = lambda entry: {}):
        self.entries, self.seeds, self.out, self.settings = entries, seeds, out, settings
        self.search, self.finetune, self.evaluation, self.find_random = search, finetune, evaluation, find_random
        self.find_without = find_without

    def check(self) -> None:
        """Raises InputError for options of a run that it would refuse, before the first one begins."""
        searches = [self.search_settings(entry) for entry in self.entries if entry.kind == "search"]
        trainings = [self.run_settings(self.training_options(entry), mask_path="fcn") for entry in self.entries]
        if self.finetune is not None:
            trainings.append(self.run_settings(self.finetune, mask_path="fcn"))
        for settings in (*searches, *trainings):
            check_args(argparse.Namespace(**settings), num_processes=1)

    def run_settings(self, options: str, **more: object) -> dict:
        """All settings of a run: the shared ones, further options as text, and more by name."""
        try:
            words = shlex.split(options)
        except ValueError as error:
            raise InputError(f"the options {options!r} cannot be read: {error}; check the quotes") from None
        parser = build_parser()
        parser.exit_on_error = False

        def refuse(message):
            raise InputError(f"train_sparse_mask.py does not accept the options {options!r}: {message}")

        parser.error = refuse
        settings = {**vars(parser.parse_args(words, argparse.Namespace(**self.settings))), **more}
        return settings if settings["search"] else {**settings, "cost": None, "budget": None}  # what only a search has

    def search_settings(self, entry: Entry) -> dict:
        """All settings of an entry's search."""
        return self.run_settings(self.search_options(entry), search=True)

    def search_options(self, entry: Entry) -> str:
        """The options, as text, of an entry's search beside the shared ones."""
        return f"{self.search} {entry.options}".strip()

    def training_options(self, entry: Entry) -> str:
        """The options, as text, of an entry's training: those of its network."""
        return entry.options if entry.kind == "mask" else ""

    def jobs(self) -> list[Job]:
        """All jobs whose commands are known. Those of random masks follow once the search has found its networks."""
        jobs = []
        for entry in self.entries:
            if entry.kind == "random":
                masks = self.find_random(entry) or []
                jobs += [self.job(f"{entry.name} {number}", number, self.out / entry.name / str(number), str(mask))
                         for number, mask in enumerate(masks)]
                continue
            for seed in self.seeds:
                folder = self.folder(entry, seed)
                if entry.kind == "without":
                    jobs.append(self.without(entry, seed, folder))
                    if seed == self.seeds[0]:
                        jobs += [self.job(f"{entry.name} {name}", seed, path.with_suffix(""), str(path))
                                 for name, path in self.find_without(entry).items()]
                elif entry.kind == "search":
                    jobs.append(self.job(entry.name, seed, folder, *self.search_commands(entry, seed, folder),
                                         search_parts=parts_of(self.search_settings(entry))))
                else:
                    jobs.append(self.job(entry.name, seed, folder, entry.text, options=entry.options))
        return jobs

    def waiting(self) -> list[str]:
        """Sentences about jobs that cannot be named yet."""
        return [f"{entry.text} waits for the networks that the search finds" for entry in self.entries
                if entry.kind == "random" and self.find_random(entry) is None]

    def files_of_search(self, entry: Entry) -> dict[int, Path]:
        """The mask that an entry's search will have written, by seed."""
        return {seed: Path(self.search_commands(entry, seed, self.folder(entry, seed))[0]) for seed in self.seeds}

    def folder(self, entry: Entry, seed: int) -> Path:
        """The folder of an entry's job with a seed."""
        return self.out / entry.name / f"seed{seed}"

    def search_commands(self, entry: Entry, seed: int, folder: Path) -> tuple[str, list]:
        """The mask that an entry's search will have written, and the commands that do."""
        run = folder / "search"
        settings = self.search_settings(entry)
        rule, name = ((f"--strongest {entry.number}", f"mask_strongest_{entry.number}") if entry.number else
                      ("", "mask_budget" if settings["budget"] is not None else f"mask_thres_{DEFAULT_THRESHOLD:g}"))
        search = self.run(self.search_options(entry), folder, "search", seed, search=True)
        prune = f"python prune.py --checkpoint {shlex.quote(str(run))} {rule}".strip()
        return str(run / f"{name}.npy"), [search, prune + own_part_options(parts_of(settings))]

    def job(self, name: str, seed: int, folder: Path, mask: str, before: Sequence[str] = (),
            options: str = "", search_parts: Mapping | None = None) -> Job:
        """A job that trains a mask and evaluates it. before: the commands that make the mask; search_parts: see Job."""
        commands = [*before, self.run(options, folder, "train", seed, mask_path=mask)]
        last = folder / "train"
        if self.finetune is not None:
            commands.append(self.run(f"{options} {self.finetune}", folder, "finetune", seed, ft_model=str(last)))
            last = folder / "finetune"
        return Job(name, seed, folder, [*commands, self.evaluate(last, folder / RESULT)], search_parts=search_parts)

    def without(self, entry: Entry, seed: int, folder: Path) -> Job:
        """A job that evaluates another entry's network without each of its connections."""
        other = self.folder(parse_entry(entry.other), seed)
        command = self.evaluate(other / ("train" if self.finetune is None else "finetune"), folder / RESULT)
        return Job(entry.name, seed, folder, [f"{command} --without_each"], needs=other / RESULT)

    def run(self, options: str, folder: Path, name: str, seed: int, **task: object) -> str:
        """The command of one search or training."""
        settings = self.run_settings(options, seed=seed, exp_path=str(folder), run_name=name, **task)
        if "ft_model" in task:  # the checkpoint has these
            settings = {**settings, **dict.fromkeys(("fusion", "connection", "head", "depth", "backbone_name",
                                                       "init"))}
        return command_line(build_parser(), settings)

    def evaluate(self, run: Path, result: Path) -> str:
        """The command that evaluates a run's last checkpoint."""
        options = "".join(f" --{name} {shlex.quote(str(self.settings[name]))}"
                          for name in ("im_path", "gt_path", "eval_list", "n_worker", "type", "gpu"))
        command = (f"python eval_sparse_mask.py --pretrained_model {shlex.quote(str(run))}{options} "
                   f"--json {shlex.quote(str(result))} {self.evaluation}").rstrip()
        return command + own_part_options(parts_of(self.settings))


def parts_of(settings: Mapping) -> dict:
    """The names of a network's parts, by kind, in the settings of a run. Only a search has strengths."""
    return {kind: settings[option] for kind, (option, _) in PART_OPTIONS.items()
            if kind != "strengths" or settings.get("search")}
