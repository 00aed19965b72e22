"""A network as a folder: save_pretrained, from_pretrained, and such folders in the commands."""
import json
import shutil

import numpy as np
import pytest
import torch

from helpers import TINY, call, folders, only_run, random_batch, randomize, scores
from models import SparseMask, connectivity, hub
from utils.checkpoint import read_checkpoint
from utils.colour_map import colour_map
from utils.errors import InputError

huggingface_hub = pytest.importorskip("huggingface_hub")
safetensors_torch = pytest.importorskip("safetensors.torch")
NAMES = ["road", "sky", "tree", "car", "person"]
NORMALIZATION = ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
OWN_HEAD = """
from torch import nn
def own(depth, num_classes):
    print("imported")
    return nn.Conv2d(depth, num_classes, 3, padding=1)
"""


@pytest.fixture
def network():
    mask = connectivity.published()
    mask[3, 1, 0] = True
    made = randomize(SparseMask(mask, depth=8, num_classes=5, normalization=NORMALIZATION)).eval()
    made.class_names = NAMES
    return made


def rewrite(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_round_trip(network, tmp_path):
    assert network.save_pretrained(tmp_path / "n") is None
    assert sorted(file.name for file in (tmp_path / "n").iterdir()) == ["README.md", "config.json",
                                                                        "model.safetensors"]
    again = SparseMask.from_pretrained(tmp_path / "n")
    image, _ = random_batch((65, 97), 2)
    with torch.no_grad():
        assert torch.equal(again(image), network(image))
    assert not again.training and again.class_names == NAMES and again.normalization == NORMALIZATION
    assert np.array_equal(again.connectivity, network.connectivity)
    assert (again.parts, again.depth) == (network.parts, 8)
    config = json.loads((tmp_path / "n/config.json").read_text())
    assert config["palette"] == colour_map()[:5].tolist()
    assert any("D[8]" in line for line in config["connectivity"])  # readable
    card = (tmp_path / "n/README.md").read_text()
    assert "library_name: sparsemask" in card and "16 connections in 4 of 9 stages" in card and "D[8]   E[0]" in card


def test_it_is_saved_as_it_is_then(network, tmp_path):
    network.save_pretrained(tmp_path / "n")
    with torch.no_grad():
        network.fc_conv.bias += 1
    network.save_pretrained(tmp_path / "n")  # over the first
    assert torch.equal(SparseMask.from_pretrained(tmp_path / "n").fc_conv.bias, network.fc_conv.bias)


def test_a_hub_name_is_downloaded(network, tmp_path, monkeypatch):
    network.save_pretrained(tmp_path / "n")
    asked = []

    def download(name, file, **options):
        asked.append((name, file, options))
        return str(tmp_path / "n" / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    hub.import_hub.cache_clear()
    try:
        again = SparseMask.from_pretrained("somebody/network", revision="main")
    finally:
        hub.import_hub.cache_clear()
    assert asked == [("somebody/network", file, {"revision": "main"}) for file in ("config.json", "model.safetensors")]
    assert torch.equal(again.fc_conv.weight, network.fc_conv.weight)


def test_own_parts_are_imported_only_if_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_head_of_hub.py").write_text(OWN_HEAD)
    monkeypatch.syspath_prepend(tmp_path)
    name = "own_head_of_hub:own"
    SparseMask(connectivity.fcn(), depth=4, num_classes=3, head=name).save_pretrained(tmp_path / "n")
    capsys.readouterr()
    with pytest.raises(InputError, match="if you trust it, name it too"):
        SparseMask.from_pretrained(tmp_path / "n")
    with pytest.raises(InputError, match="has to be imported"):
        read_checkpoint(tmp_path / "n").build()
    assert capsys.readouterr().out == ""
    assert SparseMask.from_pretrained(tmp_path / "n", head=name).fc_conv.kernel_size == (3, 3)


@pytest.mark.parametrize("wrong, message", [
    ({"depth": "8"}, "its depth is 8"), ({"num_classes": None}, "its num_classes is None"),
    ({"num_classes": 6}, "its class_names is"), ({"class_names": [1] * 5}, "its class_names is"),
    ({"normalization": [[0, 0, 0], [1, 0, 1]]}, "its normalization is"),
    ({"normalization": [[0, 0, 0], [1, float("nan"), 1]]}, "its normalization is"), ({"normalization": 3}, "is 3"),
    ({"connectivity": ["D[8] E[9]"]}, "E\\[9\\]"), ({"connectivity": None}, "connectivity|join"),
    ({"backbone": 3}, "its backbone is 3"), ({"backbone": "nothing"}, "unknown backbone"),
    ({"depth": 16}, "weights in .* are not those")])
def test_a_config_that_is_wrong(network, tmp_path, wrong, message):
    network.save_pretrained(tmp_path / "n")
    rewrite(tmp_path / "n", **wrong)
    with pytest.raises(InputError, match=message):
        SparseMask.from_pretrained(tmp_path / "n")
    with pytest.raises(InputError):
        read_checkpoint(tmp_path / "n").build()


def test_folders_that_are_none(network, tmp_path):
    network.save_pretrained(tmp_path / "n")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; give a folder"):
        network.save_pretrained(tmp_path / "file")
    with pytest.raises(InputError, match="cannot write in"):
        network.save_pretrained(tmp_path / "file" / "below")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="config.json of another program"):
        network.save_pretrained(tmp_path / "bert")
    assert [file.name for file in (tmp_path / "bert").iterdir()] == ["config.json"]
    with pytest.raises(InputError, match="has the backbone mobilenet_v2, but resnet18 was given"):
        SparseMask.from_pretrained(tmp_path / "n", backbone="resnet18")
    for name, text in (("config.json", "[]"), ("config.json", "{"), ("config.json", "{}"), ("model.safetensors", "x")):
        folder = tmp_path / "broken"
        shutil.copytree(tmp_path / "n", folder)
        (folder / name).write_text(text)
        with pytest.raises(InputError, match="broken"):
            SparseMask.from_pretrained(folder)
        (folder / name).unlink()
        with pytest.raises(InputError, match="broken"):
            SparseMask.from_pretrained(folder)
        shutil.rmtree(folder)
    with pytest.raises(InputError, match="is no folder here, and config.json .* cannot be downloaded"):
        SparseMask.from_pretrained("no/such_network", local_files_only=True)
    with pytest.raises(InputError, match="is no folder here"):
        SparseMask.from_pretrained("no/such/folder")


@pytest.mark.slow
def test_a_folder_in_the_commands(data, tmp_path):
    assert call("train_sparse_mask.py", "--mask_path", "fcn", *TINY, *folders(data), "--max_epoch", 1,
                "--class_names", data / "names.txt", "--exp_path", tmp_path / "runs").code == 0
    run, folder = only_run(tmp_path / "runs"), tmp_path / "network"
    assert call("export.py", "--checkpoint", run, "--out", folder).code == 0

    def evaluate(source):
        outcome = call("eval_sparse_mask.py", "--pretrained_model", source, *folders(data, train=False), "--gpu", -1,
                       "--n_worker", 0)
        return scores(outcome)

    assert evaluate(folder) == evaluate(run)
    assert read_checkpoint(folder).settings["crop_size"] == read_checkpoint(run).settings["crop_size"]
    assert call("export.py", "--checkpoint", folder, "--out", tmp_path / "again").code == 0  # a folder of a folder
    first, again = (safetensors_torch.load_file(path / "model.safetensors") for path in (folder, tmp_path / "again"))
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)
    assert call("train_sparse_mask.py", "--ft_model", folder, *TINY, *folders(data), "--max_epoch", 1,
                "--exp_path", tmp_path / "more").code == 0
    for option in (["--int8"], ["--size", 64, 64], ["--output", "classes"], ["--normalized"]):
        outcome = call("export.py", "--checkpoint", run, "--out", tmp_path / "new", *option)
        assert outcome.code and "a folder with the weights" in outcome.text
    assert not (tmp_path / "new").exists()
