"""The forms of an exported file (fixed size, RGB input, float16, int8), and such files in eval, predict and measure."""
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from helpers import ROOT, TINY, call, folders, only_run, random_batch, randomize, scores
from models import SparseMask, connectivity
from utils.exported import ExportedNetwork
from utils.exporting import ONNX_FROM, Deployed, export_onnx, metadata, quiet
from utils.quantizing import prepare, share_changed

onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.skipif(tuple(map(int, torch.__version__.split(".")[:2])) < ONNX_FROM,
                                reason="this PyTorch cannot translate it")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """The folder of a training, and an ONNX file of its network."""
    out = tmp_path_factory.mktemp("runs")
    assert call("train_sparse_mask.py", "--mask_path", "published", *TINY, *folders(data), "--max_epoch", 2,
                "--eval_interval", 2, "--class_names", data / "names.txt", "--exp_path", out).code == 0
    folder = only_run(out)
    assert export(folder, folder.parent / "any.onnx").code == 0
    return folder


def export(folder, path, *options):
    return call("export.py", "--checkpoint", folder, "--out", path, *options)


def evaluate(source, data, *options):
    return call("eval_sparse_mask.py", "--pretrained_model", source, *folders(data, train=False), "--gpu", -1,
                "--n_worker", 0, *options)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return randomize(SparseMask(connectivity.published(), depth=8, num_classes=5)).eval()


@pytest.mark.slow
def test_a_fixed_size_with_rgb_input_runs_in_opencv_too(network, tmp_path):
    module = Deployed(network, "logits", normalizes=True, size=(64, 96)).eval()
    path = tmp_path / "n.onnx"
    export_onnx(module, path, metadata(module, list("abcde"), {}), opset=18)
    assert onnx.load(path).opset_import[0].version == 18
    rgb = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in network.normalization)
    with torch.no_grad():
        expected = network(((torch.from_numpy(rgb).permute(2, 0, 1) / 255 - mean) / std)[None]).numpy()
    image = rgb.transpose(2, 0, 1)[None].astype(np.float32)
    got = onnxruntime.InferenceSession(path).run(None, {"image": image})[0]
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())
    cv2 = pytest.importorskip("cv2")
    net = cv2.dnn.readNetFromONNX(str(path))
    net.setInput(cv2.dnn.blobFromImage(rgb, swapRB=False))
    np.testing.assert_allclose(net.forward(), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_float16(network, tmp_path):
    modules = [Deployed(network, "logits", size=(64, 96), float16=half).eval() for half in (False, True)]
    for module, name in zip(modules, ("whole", "half"), strict=True):
        export_onnx(module, tmp_path / f"{name}.onnx", metadata(module, list("abcde"), {}), modules[0])
    sizes = [(tmp_path / f"{name}.onnx").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    image, _ = random_batch((64, 96), 1)
    whole, half = (ExportedNetwork(tmp_path / f"{name}.onnx")(image) for name in ("whole", "half"))
    assert whole.dtype == half.dtype == torch.float32
    assert 0 < (whole - half).abs().max() < 0.02 * whole.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("options", [None, ["--normalized"], ["--output", "classes"], ["--output", "resized"]])
def test_an_exported_file_has_the_scores_of_its_checkpoint(run, data, tmp_path, options):
    path = run.parent / "any.onnx"
    if options:  # for one size, which is translated faster
        path = tmp_path / "n.onnx"
        assert export(run, path, "--size", 80, 96, *options).code == 0
    crop = ["--crop_size", 80, 96] if options else []  # to the file's size images are padded without being told
    assert scores(evaluate(path, data, "--boundary", 2)) == scores(evaluate(run, data, "--boundary", 2, *crop))


def test_an_exported_file_predicts_what_its_checkpoint_does(run, data, tmp_path):
    for source, name in ((run, "a"), (run.parent / "any.onnx", "b")):
        outcome = call("predict.py", data / "img", "--checkpoint", source, "--out", tmp_path / name, "--gpu", -1,
                       "--n_worker", 0, "--scales", 1, 1.25, "--flip")
        assert outcome.code == 0, outcome.text
    pictures = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(pictures) == 14 and pictures == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in pictures:
        a, b = (np.asarray(Image.open(tmp_path / folder / name)) for folder in "ab")
        assert (a == b).mean() > 0.999


def test_measuring_a_file(run):
    printed = [call("measure.py", source, "--size", 64, 64, "--runs", 2, "--gpu", -1).text
               for source in (run, run.parent / "any.onnx")]
    work = [re.search(r"multiply-adds +(\S+ \w)", text)[1] for text in printed]
    assert work[0] == work[1] and "onnxruntime" in printed[1] and "15 connections" in printed[1]


@pytest.mark.slow
def test_a_file_of_torch_export(run, data, tmp_path):
    path, size = tmp_path / "n.pt2", [70, 76]  # one size, which is translated faster
    assert export(run, path, "--size", *size, "--normalized", "--output", "classes").code == 0
    assert scores(evaluate(path, data, "--trusted")) == scores(evaluate(run, data))
    outcome = evaluate(path, data)
    assert outcome.code == 2 and "say so (--trusted)" in outcome.text, outcome.text
    outcome = evaluate(path, data, "--trusted", "--engine", "onnx")
    assert outcome.code == 2 and "--engine is onnx, but PyTorch" in outcome.text, outcome.text
    assert call("predict.py", data / "img" / "n5.jpg", "--checkpoint", path, "--trusted", "--out", tmp_path).code == 0
    outcome = call("measure.py", path, "--trusted", "--runs", 1, "--size", *size)
    assert outcome.code == 0 and "PyTorch" in outcome.text, outcome.text
    plain = call("measure.py", run, "--runs", 1, "--size", *size, "--gpu", -1)
    figure = re.compile(r"multiply-adds +(.*)")
    assert figure.search(outcome.text)[1] == figure.search(plain.text)[1]


def test_an_engine_of_a_checkpoint(run, data, monkeypatch):
    expected = scores(evaluate(run, data))
    path = run / "checkpoint_6.onnx"
    assert scores(evaluate(run, data, "--engine", "onnx")) == expected
    before = path.stat().st_mtime_ns
    assert scores(evaluate(run, data, "--engine", "onnx")) == expected and path.stat().st_mtime_ns == before
    exported_again = []
    (run / "checkpoint_6.pth.tar").touch()  # as if it had been trained anew
    monkeypatch.setattr("utils.engine_options.export_onnx", lambda *_: exported_again.append(1))
    assert evaluate(run, data, "--engine", "onnx", "--type", "bfloat16").code == 2  # before anything is exported
    assert scores(evaluate(run, data, "--engine", "onnx")) == expected and exported_again == [1]
    path.write_bytes((run.parent / "any.onnx").read_bytes())
    outcome = evaluate(run, data, "--engine", "onnx")
    assert outcome.code == 2 and "did not put it there" in outcome.text
    path.unlink()


@pytest.fixture(scope="module")
def calibration(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("lists") / "calibration.txt"
    path.write_text("".join(f"n{i}\n" for i in range(7)))
    return ["--calibration_list", path, "--im_path", data / "img"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--size", 80, 96, "--normalized", "--output", "classes"]])
def test_int8(run, data, calibration, tmp_path, options):
    path = tmp_path / "int8.onnx"
    labels = ["--eval_list", data / "val.txt", "--gt_path", data / "gt"]
    outcome = export(run, path, "--int8", *calibration, *labels, *options)
    assert outcome.code == 0, outcome.text
    assert "in float32; tried too: " in outcome.text and "the last convolution" in outcome.text
    assert re.search(r"val.txt: [\d.]+ % in float32, [\d.]+ % in int8", outcome.text)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("QuantizeLinear") > 20 and path.stat().st_size < 0.6 * (run.parent / "any.onnx").stat().st_size
    if not options:
        image, _ = random_batch((80, 90), 2)
        found, expected = ExportedNetwork(path)(image), ExportedNetwork(run.parent / "any.onnx")(image)
        assert 0 < (found - expected).abs().mean() < 0.2 * expected.abs().mean()
        assert share_changed([expected.argmax(1)], [found.argmax(1)]) < 0.2
    assert scores(evaluate(path, data))


class Small(torch.nn.Module):
    """A network whose classes are those of resized logits."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 5, 3, stride=2, padding=1)

    def forward(self, image):
        return F.interpolate(self.conv(image), size=image.shape[2:], mode="bilinear", align_corners=True).argmax(1)


def test_channels_last_in_the_last_resize_change_no_class(tmp_path):
    dims = {"image": {i: torch.export.Dim(name, min=8, max=99) for i, name in ((2, "height"), (3, "width"))}}
    program = torch.export.export(Small(), (torch.zeros(1, 3, 20, 30),), dynamic_shapes=dims)
    with quiet():
        torch.onnx.export(program, dynamo=True, input_names=["image"], verbose=False).save(tmp_path / "a.onnx")
    kept = {flag: prepare(tmp_path / "a.onnx", tmp_path / f"{flag}.onnx", channels_last=flag) for flag in (True, False)}
    models = {flag: onnx.load(tmp_path / f"{flag}.onnx") for flag in kept}
    for flag, model in models.items():
        kinds = {node.name: node.op_type for node in model.graph.node}
        assert {"Conv", "Resize", "ArgMax"} <= {kinds[name] for name in kept[flag]}
        assert ("Transpose" in kinds.values()) == flag
    for size in ((24, 17), (9, 40)):
        image = {"image": np.random.default_rng(0).standard_normal((1, 3, *size), np.float32)}
        first, last = (onnxruntime.InferenceSession(model.SerializeToString()).run(None, image)[0]
                       for model in models.values())
        assert first.shape == (1, *size) and len(np.unique(first)) > 2
        assert (first == last).mean() > 0.99  # the order of the sums


@pytest.mark.parametrize("options, words", [
    (["--int8"], "give --calibration_list and --im_path"), (["--opset", 9], "the opset is 9; give 18 to"),
    (["--size", 20, 90], "--size is 20; give 32"), (["--size", 90, 32], "33 pixels or more"),
    (["--int8", "--float16"], "--calibration_list"),
    (["--gt_path", "x"], "both --eval_list and --gt_path"), (["--im_path", "x"], "--im_path is for --int8")])
def test_options_of_export_that_cannot_be(run, tmp_path, options, words):
    outcome = export(run, tmp_path / "n.onnx", *options)
    assert outcome.code == 2 and words in outcome.text, outcome.text
    assert not list(tmp_path.iterdir())


def test_int8_needs_several_images_and_onnx(run, calibration, tmp_path):
    (tmp_path / "one.txt").write_text("n0\n")
    outcome = export(run, tmp_path / "n.onnx", "--int8", *calibration[2:], "--calibration_list", tmp_path / "one.txt")
    assert outcome.code == 2 and "has 1 image; give 4 or more" in outcome.text, outcome.text
    outcome = export(run, tmp_path / "n.pt2", "--int8", *calibration)
    assert outcome.code == 2 and "--int8 is for ONNX" in outcome.text, outcome.text
    outcome = export(run, tmp_path / "n.onnx", "--int8", "--float16", *calibration)
    assert outcome.code == 2 and "exclude each other" in outcome.text, outcome.text


@pytest.mark.parametrize("options, words", [
    (["--type", "bfloat16"], "computes in the type"), (["--compile"], "--compile is for a checkpoint that"),
    (["--without_each"], "--without_each is for a checkpoint that"),
    (["--engine", "torch"], "--engine is torch, but onnxruntime"),
    (["--backbone_name", "resnet18"], "contains the whole network"),
    (["--mask_path", "fcn"], "is not the connectivity"),
    (["--n_class", 7], "has classes 3, but 7")])
def test_what_an_exported_file_cannot_do(run, data, options, words):
    outcome = evaluate(run.parent / "any.onnx", data, *options)
    assert outcome.code == 2 and words in outcome.text, outcome.text


def test_files_that_export_did_not_write(run, data, tmp_path):
    path = tmp_path / "n.onnx"
    model = onnx.load(run.parent / "any.onnx")

    def refused(words):
        outcome = evaluate(path, data)
        assert outcome.code == 2 and words in outcome.text, outcome.text

    refused("does not exist")
    path.write_bytes(b"no model")
    refused("cannot be read as ONNX")
    notes = {entry.key: entry.value for entry in model.metadata_props}
    for changes, words in (({"software": "another"}, "written by another"), ({"mean": "[1, 2]"}, "its normalization"),
                           ({"mean": "[1, 2, NaN]"}, "its normalization"), ({"class_names": "[]"}, "its class_names"),
                           ({"connectivity": "D[8] <- E[99]"}, "no file of export.py"), ({"std": "{"}, "no file of")):
        onnx.helper.set_model_props(model, {**notes, **changes})
        onnx.save(model, path)
        refused(words)
    del model.metadata_props[:]
    onnx.save(model, path)
    refused("have no 'software'")
    path = tmp_path / "n.pt2"
    path.write_bytes(b"")
    refused("can run code that is in it")
    outcome = evaluate(path, data, "--trusted")
    assert outcome.code == 2 and "cannot be read as a file of torch.export" in outcome.text, outcome.text
    torch.export.save(torch.export.export(torch.nn.Conv2d(3, 4, 1), (torch.zeros(1, 3, 8, 8),)), path)
    outcome = evaluate(path, data, "--trusted")
    assert outcome.code == 2 and "it was written by another program" in outcome.text


def test_another_size_than_the_files_is_one_sentence(run, data, tmp_path):
    path = tmp_path / "n.onnx"
    assert export(run, path, "--size", 64, 64).code == 0
    outcome = evaluate(path, data)
    assert outcome.code == 2 and "takes 1 image of 64x64 pixels at a time, and got 1 of 76x70" in outcome.text
    outcome = evaluate(run.parent / "any.onnx", data, "--crop_size", 1, "--scales", 0.2)
    assert outcome.code in (0, 2) and "Traceback" not in outcome.text


@pytest.mark.slow
def test_the_example_without_pytorch(run, data, tmp_path):
    assert export(run, tmp_path / "n.onnx", "--size", 70, 76, "--normalized", "--output", "classes").code == 0
    example = (ROOT / "docs" / "run_onnx.py").read_text()
    assert "import torch" not in example
    command = [sys.executable, ROOT / "docs" / "run_onnx.py", tmp_path / "n.onnx", data / "img" / "n5.jpg"]
    printed = subprocess.run([*command, tmp_path / "label.png"], check=True, text=True, capture_output=True).stdout
    assert "%" in printed and any(name in printed for name in ("ground", "green square", "blue square"))
    assert call("predict.py", data / "img" / "n5.jpg", "--checkpoint", run, "--out", tmp_path, "--gpu", -1,
                "--crop_size", 70, 76).code == 0
    label, expected = (np.asarray(Image.open(tmp_path / name)) for name in ("label.png", "n5.png"))
    assert label.shape == expected.shape and (label == expected).mean() > 0.999
