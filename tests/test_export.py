"""Exported networks give what PyTorch gives, at sizes other than those they were traced with; and torch.hub."""
import json
import sys

import numpy as np
import pytest
import torch

from helpers import ROOT, random_batch, randomize
from models import SparseMask, connectivity
from utils.colour_map import colour_map
from utils.errors import InputError
from utils.exporting import ONNX_FROM, Deployed, export_onnx, export_torch, metadata, require_equal

TORCH = tuple(map(int, torch.__version__.split(".")[:2]))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = SparseMask(connectivity.published(), depth=8, num_classes=5)
    randomize(network)
    return network.eval()


def expected(network, image, output):
    with torch.no_grad():
        logits = network(image)
    if output != "logits":
        logits = torch.nn.functional.interpolate(logits, size=image.shape[2:], mode="bilinear", align_corners=True)
    return logits.argmax(1) if output == "classes" else logits


@pytest.mark.slow
@pytest.mark.skipif(TORCH < ONNX_FROM, reason="this PyTorch cannot translate it")
@pytest.mark.parametrize("output", ["logits", "classes"])  # the classes are those of the resized logits
def test_onnx(network, output, tmp_path):
    onnxruntime, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    path = tmp_path / "n.onnx"
    sizes = (((57, 140), 1), ((96, 64), 2))
    # one of them for a single size, which is translated faster
    module = Deployed(network, output, size=None if output == "logits" else sizes[0][0])
    export_onnx(module, path, metadata(module, list("abcde"), {}))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size, n in sizes if module.size is None else sizes[:1]:
        image, _ = random_batch(size, n)
        got = session.run(None, {"image": image.numpy()})[0]
        want = expected(network, image, output).numpy()
        if output == "classes":
            assert got.shape == want.shape and (got == want).mean() > 0.999
        else:
            np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
    notes = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(notes["class_names"]) == list("abcde") and json.loads(notes["mean"]) == [0.485, 0.456, 0.406]
    assert (connectivity.parse(notes["connectivity"]) == connectivity.published()).all()
    assert json.loads(notes["palette"]) == colour_map()[:5].tolist()
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert {"Conv", "Add", "Resize"} <= kinds and kinds.isdisjoint({"BatchNormalization", "Gemm", "MatMul"})


def test_a_pytorch_too_old_for_onnx_is_said(network, tmp_path, monkeypatch):
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name)
    monkeypatch.setattr(torch, "__version__", "2.6.0+cpu")
    with pytest.raises(InputError, match="ONNX needs PyTorch 2.7 or newer.*this is 2.6.0"):
        export_onnx(Deployed(network, "logits"), tmp_path / "n.onnx", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_torch_export(network, tmp_path):
    path = tmp_path / "n.pt2"
    module = Deployed(network, "resized")
    export_torch(module, path, metadata(module, list("abcde"), {}))
    notes = {"class_names.txt": ""}
    program = torch.export.load(path, extra_files=notes).module()
    image, _ = random_batch((57, 140), 3)
    want = expected(network, image, "resized")
    assert torch.allclose(program(image), want, atol=1e-4 * want.abs().max().item())
    text = notes["class_names.txt"]
    assert json.loads(text if isinstance(text, str) else text.decode()) == list("abcde")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "fcn"])
def test_every_connectivity_exports(kind, tmp_path):
    torch.manual_seed(0)
    network = SparseMask(connectivity.NAMED[kind](), depth=4, num_classes=3).eval()
    randomize(network)
    assert "equal to PyTorch" in export_torch(Deployed(network, "logits"), tmp_path / "n.pt2", {})
    assert torch.export.load(tmp_path / "n.pt2")


def test_a_wrong_export_is_not_written(network):
    with pytest.raises(RuntimeError, match="differs from PyTorch"):
        require_equal(Deployed(network, "logits"), lambda image: Deployed(network, "logits")(image) + 0.1)


def test_without_onnx_it_says_what_to_install(network, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match="pip install onnx"):
        export_onnx(Deployed(network, "logits"), tmp_path / "n.onnx", {})
    assert not list(tmp_path.iterdir())


def test_hub(network, tmp_path):
    loaded = torch.hub.load(str(ROOT), "sparse_mask", connectivity="unet", num_classes=3, source="local")
    assert (loaded.connectivity == connectivity.unet()).all() and loaded.fc_conv.out_channels == 3
    torch.save({"state_dict": network.state_dict()}, tmp_path / "c.pth.tar")
    loaded = torch.hub.load(str(ROOT), "sparse_mask", checkpoint=tmp_path / "c.pth.tar", source="local")
    image, _ = random_batch()
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(image), network(image))
