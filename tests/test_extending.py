"""Every file of docs/extending.md, through the commands: search, prune, train, eval, resume, export."""
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from helpers import ROOT, TINY, call, folders, only_run
from models import FullyDenseNetwork, SparseMask, connectivity
from models.folded_search import applies
from utils.checkpoint import read_checkpoint

TEXT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = {match[1]: match[2] for match in re.finditer(r"```python\n# (\w+\.py)\n(.*?)```", TEXT, re.DOTALL)}
OPTIONS = [option for line in re.findall(r"^Options: (.*)$", TEXT, re.MULTILINE)
           for option in re.findall(r"`(--\w+ \S+)`", line)]
MAX_LINES = 25
LAST = "checkpoint_2.pth.tar"


@pytest.fixture(scope="module", autouse=True)
def parts(tmp_path_factory):
    """The files of the page, where they can be imported."""
    folder = tmp_path_factory.mktemp("parts")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


def test_the_page_has_five_changes_and_a_parameterization_in_small_files():
    assert {option.split()[0] for option in OPTIONS} == {"--connection", "--fusion", "--backbone_name", "--head",
                                                        "--sparse_loss", "--strengths"}
    assert all(len(text.splitlines()) <= MAX_LINES for text in FILES.values())
    assert {option.split()[1].partition(":")[0] + ".py" for option in OPTIONS} == set(FILES)


class Runs(NamedTuple):
    """A search, its pruning and a training, two steps each, with a part of one's own."""
    flag: str
    name: str
    printed: str  # by the search
    search: Path  # run folders
    train: Path

    @property
    def options(self) -> list:
        """What names the part."""
        return [self.flag, self.name]

    @property
    def of_pruning(self) -> list:
        """The options that commands on the search's checkpoint need: the regularizer is no part of a network."""
        return [] if self.flag == "--sparse_loss" else self.options

    @property
    def of_training(self) -> list:
        """The options that training and commands on its checkpoint need."""
        return [] if self.flag in ("--sparse_loss", "--strengths") else self.options


def put_strengths(path):
    """Puts a small connectivity into a search's checkpoint, as a long search leaves it. Returns the connectivity."""
    content = torch.load(path, weights_only=True)
    names = [name for name in content["state_dict"] if name.rpartition(".")[2].startswith("_")]  # deepest first
    finest = len(names) - 1
    found = connectivity.from_table(len(names), {0: ((0,), (0,)), finest: ((0, finest), (0, 1))})
    for stage, name in enumerate(names):
        content["state_dict"][name] = torch.from_numpy(np.where(found[stage, :stage + 1], 20.0, -20.0)).float()
    torch.save(content, path)
    return found


@pytest.fixture(scope="module", params=[pytest.param(option, marks=pytest.mark.slow) for option in OPTIONS])
def runs(request, parts, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    runs = Runs(*request.param.split(), "", out, out)
    two_steps = [*TINY, *folders(data), "--max_epoch", 2, "--batch_size", 5, "--eval_interval", 2, "--keep_all"]
    searched = call("train_sparse_mask.py", "--search", *two_steps, *runs.options, "--strength_warmup", 0,
                    "--exp_path", out / "search")
    assert searched.code == 0
    search, found = only_run(out / "search"), out / "found.pth.tar"
    shutil.copy(search / LAST, found)
    kept = put_strengths(found)
    assert call("prune.py", "--checkpoint", found, *runs.of_pruning).code == 0
    mask = out / "mask_thres_0.001.npy"
    assert (connectivity.load(mask) == kept).all()
    trained = call("train_sparse_mask.py", "--mask_path", mask, *two_steps, *runs.of_training, "--exp_path",
                   out / "train")
    assert trained.code == 0
    return runs._replace(printed=searched.text, search=search, train=only_run(out / "train"))


def test_a_search_prints_the_whole_next_command(runs):
    *_, line = runs.printed.splitlines()
    assert line == " ".join(["next: python prune.py --checkpoint", str(runs.search / LAST), *runs.of_pruning])


def test_a_checkpoint_names_the_part(runs):
    kind = {"--backbone_name": "backbone"}.get(runs.flag, runs.flag.removeprefix("--"))
    for folder, options in ((runs.search, runs.of_pruning), (runs.train, runs.of_training)):
        checkpoint = read_checkpoint(folder / LAST)
        assert (checkpoint.parts.get(kind) == runs.name) == (runs.name in options)
        assert checkpoint.own_parts == ({kind: runs.name} if options else {})


@pytest.mark.parametrize("script, kind", [("prune.py", "search"), ("measure.py", "search"),
                                          ("eval_sparse_mask.py", "train"), ("export.py", "train")])
def test_a_checkpoint_alone_imports_nothing(runs, tmp_path, script, kind):
    needed = runs.of_pruning if kind == "search" else runs.of_training
    if not needed:
        pytest.skip("a network without own parts")
    flag = {"eval_sparse_mask.py": ["--pretrained_model"], "measure.py": []}.get(script, ["--checkpoint"])
    out = ["--out", tmp_path / "n.pt2"] if script == "export.py" else []
    refused = call(script, *flag, getattr(runs, kind) / LAST, *out)
    assert refused.code == 2 and runs.name in refused.text and runs.flag in refused.text


@pytest.mark.parametrize("kind", ["search", "train"])
def test_a_run_resumes_with_the_part_named_and_not_without(runs, tmp_path, kind):
    folder, options = {"search": (runs.search, runs.options), "train": (runs.train, runs.of_training)}[kind]
    stopped = Path(shutil.copytree(folder, tmp_path / "stopped"))
    (stopped / LAST).unlink()
    if options:
        refused = call("train_sparse_mask.py", "--resume", stopped)
        assert refused.code == 2 and runs.name in refused.text and runs.flag in refused.text
    resumed = call("train_sparse_mask.py", "--resume", stopped, *options)
    assert resumed.code == 0 and "at iteration 1" in resumed.text
    whole, again = (read_checkpoint(path / LAST).state for path in (folder, stopped))
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_evaluation(runs, data):
    scores = call("eval_sparse_mask.py", "--pretrained_model", runs.train / LAST, "--gpu", -1, "--n_worker", 0,
                  *folders(data, train=False), *runs.of_training)
    assert scores.code == 0 and "mIoU" in scores.text


def test_export(runs, tmp_path):
    exported = call("export.py", "--checkpoint", runs.train / LAST, "--out", tmp_path / "n.pt2", *runs.of_training)
    assert exported.code == 0 and "equal to PyTorch" in exported.text


def parts_of(flag):
    """The names on the page for an option."""
    return [option.split()[1] for option in OPTIONS if option.split()[0] == flag]


def assert_every_parameter_counts(network, parameters):
    """Each of these tensors changes the output."""
    assert parameters
    image = torch.randn(1, 3, 40, 48)
    with torch.no_grad():
        for parameter in parameters:
            before = network(image)
            parameter.add_(torch.randn_like(parameter))
            assert not torch.equal(network(image), before)


def networks(**parts):
    """A supernet and a trained network with these parts."""
    sizes = {"depth": 4, "num_classes": 3}
    supernet = FullyDenseNetwork(**sizes, **parts).eval()
    assert not applies(supernet.decoders)  # the folded pass would leave the parts out
    return supernet, SparseMask(connectivity.published(), **sizes, **parts).eval()


@pytest.mark.parametrize("name", parts_of("--connection"))
def test_a_connection_of_ones_own_changes_the_output(name):
    """Nothing of it is ignored, a bias for example."""
    for network in networks(connection=name):
        assert_every_parameter_counts(network, list(network.decoders.stage(8).connection(0, 0).parameters()))


@pytest.mark.parametrize("name", parts_of("--fusion"))
def test_a_fusion_of_ones_own_changes_the_output(name):
    for network in networks(fusion=name):
        own = [parameter for name, parameter in network.decoders.stage(8).named_parameters()
               if name.partition(".")[0] in ("mix", "scores")]
        assert_every_parameter_counts(network, own)


def test_a_hook_in_the_supernet_runs_and_changes_no_output():
    network = FullyDenseNetwork(depth=4, num_classes=3, noise=False).eval()
    image, seen = torch.randn(1, 3, 40, 48), []
    with torch.no_grad():
        fast = network(image)
        hook = network.decoders.stage(8).connection(3, 0).register_forward_hook(lambda *_: seen.append(True))
        assert torch.allclose(network(image), fast, atol=1e-5 * float(fast.abs().max()))
        assert seen == [True]
        hook.remove()
        network(image)
    assert seen == [True]


def test_every_connection_of_a_trained_network_is_called():
    network = SparseMask(connectivity.published(), depth=4, num_classes=3).eval()
    called = set()
    for name, module in network.decoders.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda *_, name=name: called.add(name))
    network(torch.zeros(1, 3, 40, 48))
    assert len(called) == np.count_nonzero(connectivity.published())
