"""Weights for MobileNetV2 from files of every kind, .safetensors files, and what the command says."""
import argparse
import json
import re

import pytest
import torch

from helpers import TINY, call, folders, random_batch, tiny_data
from models import FullyDenseNetwork, SparseMask, connectivity
from models.mobilenet_v2 import MobileNetV2
from utils.errors import InputError
from utils.pretrained import EncoderWeights, find_encoder_weights, load_encoder
from utils.safetensors_file import DTYPES
from utils.tensor_files import load_file

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_safetensors(state, path):
    """As the library writes it: sorted by name, and with metadata."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in sorted(state.items()):
        raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        header[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    write_header(path, header, data)


def write_header(path, header, data=bytes(8)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def torchvision_state(network):
    """The encoder's weights under torchvision's names, written out by torchvision's own structure."""
    layers, index = [("conv1", "features.0.0"), ("bn1", "features.0.1")], 1
    for group in network.bottlenecks:
        for block in group:
            pairs = [["conv1", "bn1"]] * block.expand + [["conv2", "bn2"]]
            for p, names in enumerate(pairs):
                layers += [(block_path(network, block) + n, f"features.{index}.conv.{p}.{i}")
                           for i, n in enumerate(names)]
            layers += [(block_path(network, block) + n, f"features.{index}.conv.{len(pairs) + i}")
                       for i, n in enumerate(["conv3", "bn3"])]
            index += 1
    layers += [("conv_last", "features.18.0"), ("bn_last", "features.18.1")]
    own = network.state_dict()
    state = {f"{theirs}.{name.rpartition('.')[2]}": value for ours, theirs in layers for name, value in own.items()
             if name.rpartition(".")[0] == ours}
    return {**state, "classifier.1.weight": torch.zeros(10, 1280), "classifier.1.bias": torch.zeros(10)}


def block_path(network, block):
    return next(name for name, module in network.named_modules() if module is block) + "."


def older_names(state):
    """torchvision's names as they were once: features.N.conv.K, where K counts the ReLUs too."""
    def rename(name):
        match = re.fullmatch(r"features\.(\d+)\.conv\.(\d)\.(?:(\d)\.)?(\w+)", name)
        if not match:
            return name
        pairs = 1 if match[1] == "1" else 2
        place = 3 * int(match[2]) + int(match[3]) if match[3] else 2 * pairs + int(match[2])
        return f"features.{match[1]}.conv.{place}.{match[4]}"

    return {rename(name): value for name, value in state.items()}


@pytest.fixture(scope="module")
def encoder_files(tmp_path_factory):
    """{name: (file, encoder)}"""
    root = tmp_path_factory.mktemp("weights")
    theirs, ours = MobileNetV2(expand_first=False), MobileNetV2()
    supernet = FullyDenseNetwork(depth=4, num_classes=3)
    files = {"torchvision": (torchvision_state(theirs), theirs),
             "released": ({"state_dict": {**{"module." + k: v for k, v in ours.state_dict().items()},
                                          "module.fc.weight": torch.zeros(5, 1280)}}, ours),
             "plain": (ours.state_dict(), ours),
             "lightning": ({"state_dict": {f"model.encoder.{k}": v for k, v in torchvision_state(theirs).items()},
                            "hyper_parameters": argparse.Namespace(lr=0.1)}, theirs),
             "compiled": ({f"_orig_mod.{k}": v for k, v in torchvision_state(theirs).items()}, theirs),
             "older": (older_names(torchvision_state(theirs)), theirs),
             "older.safetensors": (older_names(torchvision_state(theirs)), theirs),
             "search": ({"state_dict": supernet.state_dict()}, supernet.backbone)}
    for name, (content, _) in files.items():
        (write_safetensors if name.endswith(".safetensors") else torch.save)(content, root / name)
    return {name: (root / name, encoder) for name, (_, encoder) in files.items()}


def torchvision_like(name):
    return name not in ("released", "plain", "search")


@pytest.mark.parametrize("name", ["torchvision", "released", "plain", "search", "lightning", "compiled", "older",
                                  "older.safetensors"])
def test_encoder_weights_of_every_kind_load_whole(encoder_files, name):
    file, encoder = encoder_files[name]
    weights = find_encoder_weights(str(file), "mobilenet_v2")
    network = SparseMask(connectivity.fcn(), weights.backbone, depth=4, num_classes=3)
    assert torchvision_like(name) == (weights.backbone == "mobilenet_v2_torchvision")
    lines = load_encoder(network.backbone, weights)
    for key, value in encoder.state_dict().items():
        assert torch.equal(network.backbone.state_dict()[key], value), key
    assert not any("warning" in line for line in lines)
    assert any("classifier" in line for line in lines) == torchvision_like(name)
    assert ("by structure" in lines[0]) == name.startswith("older")


def test_features_equal_torchvisions(tmp_path):
    try:
        from torchvision.models import mobilenet_v2
    except Exception as error:  # a CPU-only torch has no torchvision that fits
        pytest.skip(f"torchvision cannot be imported: {error}")
    theirs, ours = mobilenet_v2(weights=None).eval(), MobileNetV2(expand_first=False).eval()
    lines = load_encoder(ours, EncoderWeights("torchvision", theirs.state_dict(), "mobilenet_v2_torchvision"))
    assert "260 of 260" in lines[0] and "2 tensors" in lines[1] and "classifier.1.weight" in lines[1]
    image, _ = random_batch((65, 97))
    with torch.no_grad():
        torch.testing.assert_close(ours(image)[0].clamp(0, 6), theirs.features(image))


def test_a_width_that_is_not_the_encoders_is_said(tmp_path):
    state = torchvision_state(MobileNetV2(expand_first=False))
    state["features.0.0.weight"] = torch.zeros(16, 3, 3, 3)
    torch.save({"model": state}, tmp_path / "file")
    weights = find_encoder_weights(str(tmp_path / "file"), "mobilenet_v2")
    with pytest.raises(InputError, match="only 259 of the 260 tensors of the encoder mobilenet_v2_torchvision .* looks "
                       "like a MobileNetV2 .* features.0.0.weight is 16x3x3x3 there and 32x3x3x3 in the encoder"):
        load_encoder(MobileNetV2(expand_first=False), weights)


def test_a_files_lack_is_refused_by_the_command_unless_accepted(tmp_path):
    (tmp_path / "data").mkdir()
    state = MobileNetV2().state_dict()
    del state["conv_last.weight"]
    torch.save(state, tmp_path / "part.pth")
    options = [*TINY, "--pretrained_model", tmp_path / "part.pth", *folders(tiny_data(tmp_path / "data")),
               "--mask_path", "fcn", "--max_epoch", 1, "--exp_path", tmp_path / "runs"]
    outcome = call("train_sparse_mask.py", *options)
    assert outcome.code == 2 and outcome.text.endswith("stay random (--partial_weights)")
    assert "only 264 of the 265" in outcome.text and "conv_last.weight is missing" in outcome.text
    outcome = call("train_sparse_mask.py", *options, "--partial_weights")
    assert outcome.code == 0 and "264 of 265 tensors" in outcome.text and "stay random: conv_last" in outcome.text


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_safetensors_of_every_type(tmp_path, dtype):
    state = {"layer.10": torch.arange(6).reshape(2, 3).to(dtype), "layer.2": torch.tensor(1).to(dtype),
             "none": torch.zeros(0, 3, dtype=dtype)}
    write_safetensors(state, tmp_path / "file.safetensors")
    found = load_file(tmp_path / "file.safetensors", "file")
    assert list(found) == ["layer.2", "layer.10", "none"]
    assert all(torch.equal(found[name], value) and found[name].dtype == dtype for name, value in state.items())


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize("header", [
    b"", b"{", b"[]", b"[" * 100_000, b"null", b"\xff", {"a": 1}, {"a": {}}, {"__metadata__": 1, "b": None},
    entry("F128"), entry([]), entry(shape=[-2]), entry(shape=[-1, -2]), entry(shape=[3]), entry(shape=[10 ** 30]),
    entry(shape=[0, 10 ** 30], offsets=[0, 0]), entry(shape="2"), entry(shape=[2.0]), entry(shape=None),
    entry(offsets=[0, 16]), entry(offsets=[-8, 0]), entry(offsets=[8, 0]), entry(offsets=[0]), entry(offsets=None),
    {**entry(), "b": {"shape": []}}, {"a": {**entry()["a"], "extra": 1}}])
def test_broken_safetensors_are_refused(tmp_path, header):
    write_header(tmp_path / "file.safetensors", header)
    with pytest.raises(InputError, match="cannot be read: it"):
        load_file(tmp_path / "file.safetensors", "file")


@pytest.mark.parametrize("content", [b"", b"12345", b"\xff" * 20, bytes(8)])
def test_what_is_no_safetensors_is_refused(tmp_path, content):
    (tmp_path / "file.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read: it is cut short"):
        load_file(tmp_path / "file.safetensors", "file")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_to_save_instead_is_said(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pth")
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "script.pt")
    for name, words in (("whole.pth", "could run code; give a file with a state dict alone"),
                        ("script.pt", "TorchScript archive; give its state dict")):
        with pytest.raises(InputError, match=words):
            find_encoder_weights(str(tmp_path / name), "mobilenet_v2")
