"""compare.py: entries and jobs, the arithmetic of its table, and a whole comparison that is killed and goes on."""
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

import compare
from helpers import ROOT, TINY, call, folders
from models import SparseMask, connectivity
from models.costs import connection_costs
from models.pruning import prune
from utils import comparison_rows, job_runner
from utils.comparison import Plan, parse_entries, parse_entry
from utils.comparison_masks import masks_without
from utils.comparison_table import ablation_table, decoder_parameters, percent, remarks, summarize, to_markdown
from utils.job_runner import JobRunner, RunningJob
from utils.progress import ProgressLines
from utils.train_options import build_parser

TINY_RUNS = [option for option in TINY if option not in ("--log_interval", "1")] + ["--max_epoch", "1"]


def row(entry, seed, m_iou, mask="fcn", boundary=None, thresholds=None, device=None):
    text = connectivity.describe(connectivity.load(mask))
    more = {"thresholds": {name: connectivity.describe(connectivity.load(kept)) for name, kept in thresholds.items()}} \
        if thresholds else {}
    more |= {"boundary": {"pixels": 5, "m_iou": boundary}} if boundary is not None else {}
    more |= {"device": device} if device else {}
    return {"entry": entry, "seed": seed, "m_iou": m_iou, "connectivity": text, "parts": {}, **more}


def settings(**changes):
    return {**vars(build_parser().parse_args([])), **changes}


def plan(tmp_path, *entries, seeds=(0, 1), options=(), **more):
    return Plan(parse_entries(entries), seeds, tmp_path, settings(max_epoch=3, **dict(options)), **more)


# ---- entries and commands

@pytest.mark.parametrize("text, name, kind", [
    ("search", "search", "search"), ("search:--sparse 0.02", "search-sparse_0.02", "search"), ("l1", "l1", "search"),
    ("maskconnect:4", "maskconnect4", "search"), ("random:7", "random", "random"), ("unet", "unet", "mask"),
    ("random:7:unet", "random-unet", "random"), ("random:7:search:--lr 0.02", "random-search-lr_0.02", "random"),
    ("deeplabv3", "deeplabv3", "mask"), ("without:search", "without-search", "without")])
def test_an_entry_is_read(text, name, kind):
    entry = parse_entry(text)
    assert (entry.name, entry.kind, entry.text) == (name, kind, text)


@pytest.mark.parametrize("texts, words", [
    (["bogus"], "unknown entry 'bogus'"), (["random:0"], "no number after the colon"), (["random:x"], "no number"),
    (["fcn", "fcn"], "are the same"), (["maskconnect:3", "maskconnect"], "are the same"),
    (["without:unet"], "needs the network of 'unet'"), (["without:random:3"], "name one"), (["missing.npy"], "missing"),
    (["without:"], "unknown entry"), (["random:x:unet"], "no number"), (["random::unet"], "no number"),
    (["random:2:bogus"], "unknown entry 'bogus'"), (["random:2:random:3"], "name one"),
    (["search", "random:2:search:--sparse 0.02"], "needs the network of 'search:--sparse 0.02'"),
    (["random:2:unet", "random:3:unet"], "are the same"), (["maskconnect:2:unet"], "no number"),
    (["random:2:"], "unknown entry ''"), (["random:2:deeplabv3"], "what deeplabv3 costs")])
def test_what_is_no_entry_is_refused(data, tmp_path, texts, words):
    outcome = call("compare.py", "--entries", *texts, *TINY_RUNS, *folders(data), "--out", tmp_path / "out")
    assert outcome.code == 2 and words in outcome.text and "\n" not in outcome.text, outcome.text
    assert not (tmp_path / "out").exists()


def test_the_commands_of_a_search(tmp_path):
    job = plan(tmp_path, "search:--sparse 0.02", search="--max_epoch 2").jobs()[1]
    assert job.seed == 1 and job.folder == tmp_path / "search-sparse_0.02" / "seed1"
    search, prune_, train, evaluate = map(shlex.split, job.commands)
    assert search[1] == "train_sparse_mask.py" and "--search" in search
    for option, value in (("--sparse", "0.02"), ("--max_epoch", "2"), ("--seed", "1"), ("--run_name", "search"),
                          ("--exp_path", str(job.folder))):
        assert search[search.index(option) + 1] == value
    assert prune_[1:] == ["prune.py", "--checkpoint", str(job.folder / "search")]
    assert train[train.index("--mask_path") + 1] == str(job.folder / "search" / "mask_thres_0.001.npy")
    assert train[train.index("--max_epoch") + 1] == "3" and "--sparse" not in train
    assert evaluate[evaluate.index("--pretrained_model") + 1] == str(job.folder / "train")
    assert evaluate[evaluate.index("--json") + 1] == str(job.result)


def test_the_commands_of_other_entries(tmp_path):
    made = plan(tmp_path, "maskconnect:2", "deeplabv3", "l1", "unet", "without:unet", finetune="--lr 0.1", seeds=[5])
    strongest, deeplab, l1, unet, without = (job.commands for job in made.jobs())
    assert "--sparse 0.0 " in strongest[0] and strongest[1].endswith("--strongest 2")
    assert "mask_strongest_2.npy" in strongest[2]
    assert "--mask_path deeplabv3" in deeplab[0] and "--fusion aspp" in deeplab[0]
    assert "--sparse_loss l1" in l1[0] and "--sparse_loss" not in l1[2]
    train, finetune, evaluate = unet
    folder = tmp_path / "unet" / "seed5"
    assert f"--ft_model {folder / 'train'}" in finetune and "--lr 0.1" in finetune and "--mask_path" not in finetune
    assert "--lr" not in train and f"--pretrained_model {folder / 'finetune'}" in evaluate
    made = plan(tmp_path, "unet", finetune="--lr 0.1", options={"init": "fan_in"})
    train, finetune, _ = made.jobs()[0].commands
    assert "--init fan_in" in train and "--init" not in finetune  # the trained network goes on
    assert without == [f"{evaluate.replace(str(folder / 'result'), str(tmp_path / 'without-unet/seed5/result'))} "
                       f"--without_each"]


def test_a_budget_is_an_option_of_the_searches_alone(tmp_path):
    made = Plan(parse_entries(["search", "fcn"]), [0], tmp_path, settings(cost="parameters", budget=1e5))
    made.check()
    search, train = (job.commands for job in made.jobs())
    assert "--cost parameters --budget 100000.0" in search[0] and "mask_budget.npy" in search[2]
    assert "--cost" not in search[2] and "--cost" not in train[0]


def test_pruning_is_told_the_own_parts_of_its_search(tmp_path):
    """What an entry names holds for its search and the pruning, not for its training and evaluation."""
    made = plan(tmp_path, "search:--strengths mine:Own", "search:--head mine:other", search="--head mine:head",
                options={"connection": "mine:connection"}, seeds=[0])
    shared = "--connection mine:connection"
    commands = [job.commands for job in made.jobs()]
    for (search, prune_, train, evaluate), parts in zip(commands, (
            f"{shared} --head mine:head --strengths mine:Own", f"{shared} --head mine:other"), strict=True):
        assert prune_.endswith(f"/search {parts}")
        assert all(word in search.split() for word in parts.split())
        assert shared in train and "--head" not in train and "--strengths" not in train
        assert evaluate.endswith(shared)


def test_a_search_with_own_strengths_is_collected(data, tmp_path, monkeypatch):
    """An entry may name them for itself: the shared options need not."""
    (tmp_path / "own_strengths.py").write_text("from models.strengths import SigmoidStrengths as Own\n")
    monkeypatch.syspath_prepend(tmp_path)
    entry = "search:--strengths own_strengths:Own"
    folder = tmp_path / "out" / parse_entry(entry).name / "seed0"
    options = [*TINY_RUNS, *folders(data)]
    outcome = call("train_sparse_mask.py", "--search", *options, "--strengths", "own_strengths:Own",
                   "--exp_path", folder, "--run_name", "search")
    assert outcome.code == 0, outcome.text
    (folder / "result.json").write_text(json.dumps({"m_iou": 0.4, "parts": {}, "connectivity": ""}))
    outcome = call("compare.py", "--entries", entry, "--seeds", 0, *options, "--out", tmp_path / "out",
                   "--print_commands")
    assert outcome == (0, "")
    found, = json.loads((tmp_path / "out" / "comparison.json").read_text())["rows"]
    assert found["entry"] == parse_entry(entry).name and "0.5" in found["thresholds"]


@pytest.mark.parametrize("option, text, words", [
    ("--search_options", "--bogus 3", "does not accept the options '--bogus 3': unrec"),
    ("--search_options", "--max_epoch 0", "--max_epoch is 0"),
    ("--search_options", "'", "cannot be read"), ("--finetune_options", "--lr -1", "--lr is -1")])
def test_options_that_a_run_would_refuse_are_refused_first(data, tmp_path, option, text, words):
    outcome = call("compare.py", "--entries", "search", *TINY_RUNS, *folders(data), "--out", tmp_path / "out",
                   f"{option}={text}")
    assert outcome.code == 2 and words in outcome.text, outcome.text
    assert not (tmp_path / "out").exists()


def test_seeds_that_repeat_are_refused(data, tmp_path):
    outcome = call("compare.py", *TINY_RUNS, *folders(data), "--out", tmp_path / "out", "--seeds", 0, 1, 0)
    assert outcome.code == 2 and "one repeats" in outcome.text, outcome.text


# ---- the arithmetic

def test_the_figures_of_the_table():
    content = {"rows": [row("search", 0, 0.40, "published", 0.20), row("search", 1, 0.44, "unet", 0.30),
                        row("fcn", 0, 0.3, boundary=0.1), row("random 0", 0, 0.25), row("random 1", 1, 0.35),
                        row("without-fcn", 0, 0.3)],
               "seconds": {"fcn": 0.0123}}
    found, fcn, random = summarize(content, lambda row: SparseMask(comparison_rows.mask_of(row)), (64, 64))
    assert (found["entry"], fcn["entry"], random["entry"]) == ("search", "fcn", "random")
    assert found["m_iou"] == pytest.approx((0.42, np.std([0.40, 0.44], ddof=1)))
    assert found["connections"] == (15 + 17) / 2 and random["runs"] == 2
    assert found["boundary"][0] == pytest.approx(0.25) and random["boundary"] is None
    assert fcn["m_iou"] == (0.3, None)
    assert fcn["parameters"] == decoder_parameters(SparseMask(connectivity.fcn())) == 1280 * 64 + 128 + 64 * 21 + 21
    lines = to_markdown([found, fcn, random], 5, {"fcn": 63.8}).splitlines()
    assert lines[0] == ("| network | connections | decoder and head | multiply-adds | time | mIoU | within 5 pixels of "
                        "a boundary | runs | paper |")
    assert lines[2].startswith("| search | 16 | 0.36 M |") and "| 42.00 ± 2.83 % | 25.00 ± 7.07 % | 2 |" in lines[2]
    assert "| 12.3 ms | 30.00 % | 10.00 % | 1 | 63.80 % |" in lines[3]
    assert percent(None) == "not measured"


def test_what_is_said_below_the_table():
    same = dict.fromkeys(("0.001", "0.1", "0.5"), "published")
    rows = [row("search", 0, 0.4, "published", thresholds=same),
            row("search", 1, 0.4, "unet", thresholds={**same, "0.5": "fcn"}), row("random 0", 0, 0.2),
            row("random 1", 1, 0.3), row("random-unet 0", 0, 0.1), row("random-unet 1", 1, 0.2)]
    likeness, thresholds, control, *random = remarks({"rows": rows})
    both = connectivity.published() & connectivity.unet()
    either = connectivity.published() | connectivity.unet()
    assert f"share {100 * both.sum() / either.sum():.0f} %" in likeness
    assert "the same connectivity in 1 of 2 searches" in thresholds
    assert [line.split(",")[0] for line in random] == ["random: 2 connectivities", "random-unet: 2 connectivities"]
    assert "the best 30.00 %, the worst 20.00 %" in random[0]
    assert control == ("search: 15.00 points above the mean of 2 random connectivities of its cost, more than their "
                       "standard deviation (7.07), and above the best of them (30.00 %).")


def test_where_a_search_stands_among_the_others():
    """Two means are apart if they differ by more than two standard errors: here by 2 * 2 * sqrt(1/3 + 1/3) = 3.27."""
    rows = [row(entry, seed, (mean + (seed - 1) * spread) / 100) for entry, mean, spread in
            (("search", 50, 2), ("unet", 46.7, 0), ("fcn", 46.8, 2), ("full", 53.2, 0), ("mine", 53.3, 1),
             ("search-sparse_0.02", 60, 0), ("without-fcn", 10, 0)) for seed in range(3)]
    line = "ahead of unet; behind mine; not told apart from fcn, full."
    assert f"search: {line}" in remarks({"rows": rows})
    assert "search-sparse_0.02: ahead of unet, fcn, full, mine." in remarks({"rows": rows})
    random = [row(f"random {number}", number, m_iou) for number, m_iou in enumerate((0.45, 0.58))]
    assert remarks({"rows": rows + random})[2] == (
        "search: 1.50 points below the mean of 2 random connectivities of its cost, less than their standard deviation "
        "(9.19), and not above the best of them (58.00 %).")
    first = [row for row in rows if row["seed"] == 0]
    assert "search: not told apart from unet, fcn, full, mine." in remarks({"rows": first})  # there is no spread


def test_results_that_came_from_elsewhere_are_all_collected_at_once(data, tmp_path):
    """Those of the random connectivities too, which are jobs only once the search has its row."""
    for job in ("search/seed0", "random/0"):
        (tmp_path / job).mkdir(parents=True)
        (tmp_path / job / "result.json").write_text(json.dumps({"m_iou": 0.4, "parts": {}, "connectivity":
                                                       connectivity.describe(connectivity.published())}))
    (tmp_path / "random" / "mask_0.txt").write_text(connectivity.describe(connectivity.published()))
    outcome = call("compare.py", "--entries", "search", "random:1", "--seeds", 0, *TINY_RUNS, *folders(data), "--out",
                   tmp_path, "--print_commands")
    assert outcome == (0, "")
    rows = json.loads((tmp_path / "comparison.json").read_text())["rows"]
    assert len(rows) == 2


def test_devices_of_several_kinds_are_named_below_the_table():
    rows = [row("fcn", 0, 0.2, device="cuda:0 (NVIDIA H200)"), row("fcn", 1, 0.2, device="cuda:1 (NVIDIA H200)")]
    assert remarks({"rows": rows}) == []
    cpu = [row("unet", seed, 0.2, device=f"the CPU (AMD EPYC, AVX2, {threads})")
           for seed, threads in enumerate(("1 thread", "2 threads"))]
    remark, = remarks({"rows": rows + cpu})
    assert remark.endswith("NVIDIA H200: fcn (2); the CPU (AMD EPYC, AVX2): unet (2).")


def test_the_masks_without_each_connection(tmp_path):
    files = masks_without(tmp_path, connectivity.unet())
    assert len(files) == 17 and (tmp_path / "retrained_8_8_0.txt").exists()
    without = connectivity.load(files["D[0] <- E[0]"])  # D[0] has no other input, so it goes
    assert not without[0].any() and not without[1, 1, 1] and without[1, 1, 0] and without[8].sum() == 2
    cut = connectivity.load(files["D[5] <- D[4]"])  # nothing reads what is deeper
    assert not cut[:5].any() and cut[5].sum() == 1
    assert masks_without(tmp_path, connectivity.fcn()) == {}


def test_what_is_trained_anew_has_a_column():
    each = [{"name": "D[8] <- G", "m_iou": 0.3}, {"name": "D[8] <- E[0]", "m_iou": 0.1}]
    lines = ablation_table({"m_iou": 0.4, "without_each": each}, {"D[8] <- G": 0.45}).splitlines()
    assert lines[0] == "| without | mIoU | change | trained anew | change |"
    assert lines[2:] == ["| D[8] <- E[0] | 10.00 % | -30.00 | not trained |  |",
                         "| D[8] <- G | 30.00 % | -10.00 | 45.00 % | +5.00 |"]
    lines = ablation_table({"m_iou": 0.4, "without_each": each}, {}).splitlines()
    assert lines[2] == "| D[8] <- E[0] | 10.00 % | -30.00 |"


# ---- whole comparisons

@pytest.fixture
def options(data, tmp_path):
    return ["--entries", "search", "fcn", "random:2", "without:fcn", "--seeds", 1, *TINY_RUNS, *folders(data),
            "--search_options=--lr 0.01", "--size", 64, 64, "--out", tmp_path / "out", "--boundary", 2,
            "--threads", 1]


@pytest.mark.slow
def test_a_comparison_from_its_start_to_its_table(options, tmp_path):
    out = tmp_path / "out"
    outcome = call("compare.py", *options, "--print_commands")
    lines = outcome.text.splitlines()
    assert outcome.code == 0 and sum(not line.startswith("#") for line in lines) == 2, outcome.text
    assert any("random:2 waits" in line for line in lines)
    subprocess.run(["bash", "-e", "-c", lines[1].replace("python", sys.executable)], cwd=ROOT, check=True,
                   capture_output=True)  # fcn: as a cluster would run it
    assert (out / "fcn" / "seed1" / "result.json").exists()
    outcome = call("compare.py", *options, "--jobs", 2)
    assert outcome.code == 0, outcome.text
    content = json.loads((out / "comparison.json").read_text())
    assert len(content["rows"]) == 1 + 1 + 2 + 1
    names = [line.split(" | ")[0] for line in (out / "table.md").read_text().splitlines() if line.startswith("| ")]
    assert names[0] == "| network" and sorted(names[2:5]) == ["| fcn", "| random", "| search"]
    assert "without one connection:" in (out / "table.md").read_text()
    assert (out / "comparison.svg").exists() and "give the same connectivity in" in outcome.text

    found = [comparison_rows.mask_of(each) for each in content["rows"] if each["entry"] == "search"]
    drawn = [comparison_rows.mask_of(each) for each in content["rows"] if each["entry"].startswith("random")]
    network = SparseMask(connectivity.full(), depth=4, num_classes=3)
    for kind in ("parameters", "macs"):
        cost = connection_costs(network, kind, (64, 64))
        target = np.mean([(cost * mask).sum() for mask in found])
        assert all(abs((cost * mask).sum() / target - 1) <= 0.1 for mask in drawn)
    for mask in drawn:
        assert (prune([mask[l, :l + 1].astype(float) for l in range(9)]) == mask).all()

    outcome = call("compare.py", *options, "--retrain")  # "fcn" has one connection: without it there is no network
    assert outcome.code == 0 and len(json.loads((out / "comparison.json").read_text())["rows"]) == 5, outcome.text

    before = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    (out / "fcn" / "seed1" / "result.json").unlink()  # its row is known: it does not run again
    outcome = call("compare.py", *options)
    assert outcome.code == 0 and not (out / "fcn" / "seed1" / "result.json").exists(), outcome.text
    assert all(path.stat().st_mtime_ns == before[path] for path in before if path.exists())
    outcome = call("compare.py", *options, "--max_epoch", 2)
    assert outcome.code == 2 and "another comparison, whose max_epoch is 1, not 2" in outcome.text, outcome.text
    content = json.loads((out / "comparison.json").read_text())
    del content["settings"]["init"]  # as of a comparison from before there was this option
    (out / "comparison.json").write_text(json.dumps(content))
    outcome = call("compare.py", *options, "--init", "fan_in")
    assert outcome.code == 2 and "whose init is 'fan_out', not 'fan_in'" in outcome.text, outcome.text
    outcome = call("compare.py", *options, "--print_commands")
    assert outcome.code == 0 and "init" not in outcome.text, outcome.text


@pytest.mark.slow
def test_a_comparison_that_is_stopped_goes_on(options, tmp_path):
    options = ["--entries", "fcn", *options[options.index("--seeds"):], "--seeds", 0, "--max_epoch", 20,
               "--eval_interval", 20]
    command = [sys.executable, ROOT / "compare.py", *map(str, options)]
    log = tmp_path / "out" / "fcn" / "seed0" / "train" / "log.txt"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while not list(log.parent.glob("checkpoint_*")):
            assert process.poll() is None
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        printed = process.communicate(timeout=120)[0]
    assert process.returncode == 130 and "1 of 1 runs are left" in printed and "Traceback" not in printed, printed
    assert "stopped at iteration" in log.read_text()
    outcome = call("compare.py", *options)
    assert outcome.code == 0 and "resuming" in log.read_text(), outcome.text


def test_a_job_that_fails_does_not_stop_the_others(tmp_path):
    made = plan(tmp_path, "fcn", "unet", seeds=[0]).jobs()
    made[0].commands = ["python prune.py --checkpoint missing"]
    made[1].commands = ["python prune.py --help"]
    ended = set()

    def find_jobs():
        ended.update(job.name for job in made if "show this help" in (job.folder / "log.txt").read_text()
                     ) if (made[1].folder / "log.txt").exists() else None
        return made, [job for job in made if job.name in ended]

    runner = JobRunner(find_jobs, 2, 1)
    assert not runner.run()
    [(job, line)] = runner.failed
    assert job is made[0] and "missing" in line and "unet, seed 0" in ended


def test_what_a_command_makes_possible_starts_before_its_job_ends(tmp_path):
    script, found, later = tmp_path / "script.py", tmp_path / "found", tmp_path / "later"
    script.write_text("import pathlib, sys, time\nuntil = time.monotonic() + 60\n"
                      "while sys.argv[2:] and not pathlib.Path(sys.argv[2]).exists() and time.monotonic() < until:\n"
                      "    time.sleep(0.1)\nassert time.monotonic() < until\npathlib.Path(sys.argv[1]).touch()\n")
    made = plan(tmp_path, "fcn", "unet", seeds=[0]).jobs()
    made[0].commands = [f"python {script} {found}", f"python {script} {tmp_path / 'end'} {later}"]
    made[1].commands = [f"python {script} {later}"]

    def find_jobs():
        written = [(tmp_path / "end").exists(), later.exists()]
        return made[:1 + found.exists()], [job for job, done in zip(made, written, strict=True) if done]

    runner = JobRunner(find_jobs, 2, 1)
    assert not runner.run() and not runner.failed


def test_what_the_searches_found_is_known_once_they_are_pruned(tmp_path):
    made = plan(tmp_path, "search", seeds=[0, 1])
    search, = made.entries
    files = made.files_of_search(search)
    assert [str(files[job.seed]) in job.commands[2] for job in made.jobs()] == [True, True]
    args = SimpleNamespace(seeds=[0, 1])
    content = {"rows": [row("search", 0, 0.4, "unet")]}
    comparison = SimpleNamespace(plan=made, args=args, content=content)
    assert compare.Comparison.masks_of(comparison, search) is None
    files[1].parent.mkdir(parents=True)
    np.save(files[1], connectivity.load("fcn"))
    masks = compare.Comparison.masks_of(comparison, search)
    assert [connectivity.describe(mask) for mask in masks] == [connectivity.describe(connectivity.load(name))
                                                               for name in ("unet", "fcn")]


def test_random_connectivities_cost_what_the_entry_does_that_they_name(tmp_path):
    """A search with options: what it found; a named connectivity: that one; nothing named: what `search` found."""
    entries = parse_entries(["search", "search:--sparse 0.02", "random:1", "random:1:search:--sparse 0.02",
                             "random:1:unet"])
    made = Plan(entries, [0], tmp_path, settings())
    content = {"rows": [row("search", 0, 0.4, "published"), row("search-sparse_0.02", 0, 0.4, "sparseacn")]}
    comparison = SimpleNamespace(
        plan=made, content=content, out=tmp_path, parts={},
        args=SimpleNamespace(seeds=[0], size=(64, 64)), settings={"backbone_name": "mobilenet_v2"},
        network=lambda mask, parts: SparseMask(mask, depth=4, num_classes=3))
    comparison.masks_of = partial(compare.Comparison.masks_of, comparison)
    cost = connection_costs(comparison.network(connectivity.full(), {}), "parameters", (64, 64))
    for entry, name in zip(entries[2:], ("published", "sparseacn", "unet"), strict=True):
        path, = compare.Comparison.find_random(comparison, entry)
        assert path.parent == tmp_path / entry.name
        drawn, target = (connectivity.load(mask) for mask in (path, name))
        assert abs((cost * drawn).sum() / (cost * target).sum() - 1) <= 0.1


def test_what_the_runs_warn_of_is_passed_on_once(tmp_path, capsys):
    script = tmp_path / "script.py"
    script.write_text("import sys\nprint('warning: slow,', sys.argv[1], 'ms')\nprint('no warning: none')\n")
    made = plan(tmp_path, "fcn", "unet", seeds=[0]).jobs()
    for number, job in enumerate(made):
        job.commands = [f"python {script} {number}.5", f"python {script} {number}.7"]
        job.folder.mkdir(parents=True)
        (job.folder / "log.txt").write_text("warning: of an earlier call\n")

    def find_jobs():
        logs = [(job.folder / "log.txt").read_text() for job in made]
        return made, [job for number, job in enumerate(made) if f"{number}.7 ms" in logs[number]]

    assert not JobRunner(find_jobs, 1, 1).run()
    assert [line for line in capsys.readouterr().err.splitlines() if "warning" in line] == [
        "fcn, seed 0: warning: slow, 0.5 ms"]


def test_the_time_left_does_not_count_what_was_done_before(tmp_path, monkeypatch):
    made = plan(tmp_path, "fcn", "unet", seeds=[0]).jobs()
    made[1].commands = [f"python {tmp_path / 'none.py'}"]
    bars = []
    monkeypatch.setattr(job_runner, "progress_bar", lambda **options: bars.append(ProgressLines(**options)) or bars[0])
    runner = JobRunner(lambda: (made, made[:1]), 1, 1)
    assert not runner.run() and len(runner.failed) == 1
    assert (bars[0].format["initial"], bars[0].n, bars[0].total) == (1, 1, 2)


@pytest.mark.parametrize("printed, described", [
    ("", "fcn, seed 0"), ("train:   2%| 4/200 [01:09<18:27:22, 17.32s/it, loss=3.090]\n", "train 2 %, 18:27:22 left"),
    ("search:   9%|9 | 9/99 [00:01<00:10]\rsearch:  10%|1  | 10/99 [00:01<00:09, 9.1it/s]", "search 10 %, 00:09 left"),
    ("eval:   0%| 0/9 [00:00<?, ?it/s]\n", "eval 0 %, ? left")])
def test_how_far_a_job_is(tmp_path, printed, described):
    job = plan(tmp_path, "fcn", seeds=[0]).jobs()[0]
    job.commands = [f"python {tmp_path / 'none.py'}"]
    running = RunningJob(job, 1)
    running.process.wait()
    (job.folder / "log.txt").write_text(printed)
    assert running.describe().endswith(described)
    running.log.close()
