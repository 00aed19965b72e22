"""The four scripts as commands, end to end on a few tiny images: what they write, resume, and say of bad input."""
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import ROOT, TINY, call, folders, only_run, run
from models import SparseMask, connectivity
from utils.checkpoint import read_checkpoint
from utils.cli import parse
from utils.strengths_file import read_strengths

SCRIPTS = ("train_sparse_mask.py", "prune.py", "eval_sparse_mask.py", "predict.py", "draw.py", "measure.py",
           "export.py")
WHOLE = True  # see conftest.py


def succeed(script, *arguments):
    """A command in this process that ends with exit code 0; returns what it printed."""
    outcome = call(script, *arguments)
    assert outcome.code == 0, outcome.text
    return outcome.text


def refuse(script, *arguments):
    """A command in this process that ends with an InputError; returns the sentence."""
    outcome = call(script, *arguments)
    assert outcome.code == 2 and "\n" not in outcome.text
    return outcome.text


@pytest.fixture(scope="module")
def path(data, tmp_path_factory):
    """Search, prune, train: {name: path}."""
    out = tmp_path_factory.mktemp("runs")
    run("train_sparse_mask.py", "--search", *TINY, *folders(data), "--max_epoch", 2, "--exp_path", out / "search")
    search = only_run(out / "search")
    checkpoint = search / "checkpoint_6.pth.tar"
    # Six steps find nothing worth testing: put a known result into the checkpoint, as a long search leaves it.
    content = torch.load(checkpoint, weights_only=True)
    for l in range(9):
        logits = torch.from_numpy(np.where(connectivity.published()[l, :l + 1], 1.0, -1.0)).float()
        content["state_dict"][f"decoders.Decoders_{l}._logit_"] = logits
    torch.save(content, out / "found.pth.tar")
    content["state_dict"]["decoders.Decoders_8._logit_"] = torch.full((9, 2), -1.0)
    torch.save(content, out / "weak.pth.tar")
    printed = run("prune.py", "--checkpoint", out / "found.pth.tar")
    run("train_sparse_mask.py", "--mask_path", out / "mask_thres_0.001.npy", *TINY, *folders(data), "--max_epoch", 2,
        "--class_names", data / "names.txt", "--exp_path", out / "train")
    training = only_run(out / "train")
    return {"out": out, "search": search, "search_checkpoint": checkpoint, "mask": out / "mask_thres_0.001.npy",
            "pruned": printed, "train": training, "checkpoint": training / "checkpoint_6.pth.tar"}


def test_a_run_folder_holds_what_the_readme_says(path):
    for folder, curves in ((path["search"], {"train/loss_task", "train/loss_sparse", "train/backbone_lr",
                                             "train/decoder_lr", "search/above_threshold"}),
                           (path["train"], {"train/base_lr", "train/last_layer_lr"})):
        names = {p.name for p in folder.iterdir()}
        own = {"strengths.csv"} if folder == path["search"] else set()
        assert {"log.txt", "settings.json", "source", "tensorboard_log", "tensorboard.json", "checkpoint_6.pth.tar",
                "checkpoint_best.pth.tar"} | own == names
        assert json.loads((folder / "settings.json").read_text())["crop_size"] == 64
        assert (folder / "source" / "models" / "decoder.py").read_text() == (ROOT / "models/decoder.py").read_text()
        scalars = json.loads((folder / "tensorboard.json").read_text())
        assert curves | {"train/loss", "val/m_iou"} <= set(scalars)
        assert [row[1] for row in scalars["train/loss"]] == [1, 2, 3, 4, 5, 6]
        assert "val mIoU" in (folder / "log.txt").read_text()


def test_the_curves_hold_pictures_that_search_and_training_share(path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    tags = {}
    for kind in ("search", "train"):
        events = EventAccumulator(str(path[kind] / "tensorboard_log"))
        events.Reload()
        tags[kind] = events.Tags()
    shared = {f"val/{what}{number}" for what in ("input", "output", "gt") for number in ("", "_1")}
    for kind, own in (("search", {"search/strengths"}), ("train", {"train/architecture"})):
        assert shared | own <= set(tags[kind]["images"]) <= shared | own | {"search/architecture"}
        assert {"train/loss", "train/m_iou", "val/m_iou"} <= set(tags[kind]["scalars"])
    assert "search/strengths_histogram" in tags["search"]["histograms"]


def test_the_search_logs_its_strengths_over_time(path):
    names, iterations, values = read_strengths(path["search"])
    assert iterations.tolist() == list(range(7)) and len(names) == 90
    assert (values[0] == 0.5).all() and (values[2] == 0.5).all() and (values[3] != 0.5).any()  # warm-up: 1.8 of 6
    final = read_checkpoint(path["search_checkpoint"]).build().final_strengths()
    assert np.abs(values[-1, names.index("D[8]<-E[3]")] - final[8][3, 0]) < 0.5


def test_prune_finds_the_connectivity_and_reports_it(path):
    assert (np.load(path["mask"], allow_pickle=False) == connectivity.published()).all()
    assert "15 connections in 4 of 9 stages" in path["pruned"] and "a gap of" in path["pruned"]
    text = path["mask"].with_suffix(".txt").read_text()
    assert "D[8] <- D[3]" in text and "threshold 0.001" in text
    after = SparseMask(connectivity.published(), depth=4, num_classes=3)
    assert f"{sum(p.numel() for p in after.parameters()):,} pruned" in path["pruned"]


def test_eval_prints_the_score_of_the_log(path, data):
    printed = run("eval_sparse_mask.py", "--pretrained_model", path["checkpoint"], *folders(data, train=False),
                  "--gpu", -1, "--mask_path", path["mask"])  # a process, so that each command is one once
    score = re.search(r"^mIoU +([\d.]+)$", printed, re.MULTILINE)[1]
    last = re.findall(r"val mIoU ([\d.]+)", (path["train"] / "log.txt").read_text())[-1]
    assert score == last
    assert "green square" in printed and "pixel accuracy" in printed


def test_eval_averages_scales_and_says_so(path, data):
    plain, same, averaged = (succeed("eval_sparse_mask.py", "--pretrained_model", path["checkpoint"], "--gpu", -1,
                                     *folders(data, train=False), *options)
                             for options in ((), ("--scales", 1), ("--scales", 0.5, 1, 1.5, "--flip")))
    assert re.findall(r"[\d.]+$", plain, re.MULTILINE) == re.findall(r"[\d.]+$", same, re.MULTILINE)
    assert "averaged over the scales 0.5 1 1.5 and the mirrored image" in averaged and "averaged" not in same


def test_predict_writes_what_eval_scores(path, data, tmp_path):
    """The palette PNGs, scored by hand, give eval's mIoU: padding, order and classes are the same."""
    printed = run("predict.py", data / "img" / "n5.jpg", data / "img" / "n6.jpg", "--checkpoint", path["checkpoint"],
                  "--gpu", -1, "--out", tmp_path)
    assert "of 2 images" in printed
    confusion = np.zeros((3, 3), int)
    for name in ("n5", "n6"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.mode == "P" and image.size == (76, 70)
            prediction = np.array(image)
        np.add.at(confusion, (np.array(Image.open(data / "gt" / f"{name}.png")), prediction), 1)
        with Image.open(tmp_path / f"{name}_overlay.png") as image:
            assert image.width >= 76 and image.height > 70
    iou = confusion.diagonal() / (confusion.sum(0) + confusion.sum(1) - confusion.diagonal())
    printed = succeed("eval_sparse_mask.py", "--pretrained_model", path["checkpoint"], *folders(data, train=False),
                      "--gpu", -1)
    assert f"{100 * iou.mean():.2f}" == re.search(r"^mIoU +([\d.]+)$", printed, re.MULTILINE)[1]


def test_predict_goes_on_after_an_image_that_cannot_be_read(path, data, tmp_path):
    images = tmp_path / "in"
    images.mkdir()
    shutil.copy(data / "img" / "n0.jpg", images / "a.jpg")
    (images / "b.jpg").write_bytes((data / "img" / "n0.jpg").read_bytes()[:300])
    (images / "c.png").write_text("")
    Image.new("L", (7, 5)).save(images / "d.png")
    code, printed = call("predict.py", images, "--checkpoint", path["checkpoint"], "--gpu", -1, "--out",
                         tmp_path / "out", "--scales", 0.5, 1, "--flip")
    assert code == 1
    assert "b.jpg cannot be read" in printed and "c.png cannot be read" in printed
    assert "2 of 4 could not be read" in printed and "averaged over" in printed
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"a.png", "a_overlay.png", "d.png", "d_overlay.png"}
    assert Image.open(tmp_path / "out" / "d.png").size == (7, 5)
    before = (images / "d.png").read_bytes()
    message = refuse("predict.py", images, "--checkpoint", path["checkpoint"], "--gpu", -1, "--out", images)
    assert "another --out" in message and (images / "d.png").read_bytes() == before


@pytest.mark.slow
def test_draw_takes_masks_checkpoints_and_runs(path, tmp_path):
    for number, (command, source, pictures) in enumerate((
            (run, path["search"], {"strengths", "strengths_over_time", "architecture"}),
            (succeed, path["out"] / "found.pth.tar", {"found_strengths", "found_architecture"}),
            (succeed, path["out"] / "weak.pth.tar", {"weak_strengths"}),
            (succeed, path["checkpoint"], {"checkpoint_6_architecture"}),
            (succeed, path["train"], {"architecture"}),
            (succeed, "unet", {"unet_architecture"}),
            (succeed, path["mask"].with_suffix(".txt"), {"mask_thres_0.001_architecture"}))):
        out = tmp_path / str(number)
        printed = command("draw.py", source, "--out", out)
        assert {p.name for p in out.iterdir()} == {f"{name}.{suffix}" for name in pictures for suffix in ("svg", "png")}
        assert ("finest stage keeps no input" in printed) == ("weak" in str(source))


@pytest.mark.slow
def test_measure_says_what_and_how(path):
    printed = run("measure.py", "published", "--gpu", -1, "--size", 64, 96, "--runs", 2, "--batch_size", 2)
    assert "2,785,941 (2.22 M encoder + 0.56 M decoder and head)" in printed
    assert "images of 64x96, batch 2, float32" in printed and re.search(r"peak memory +[1-9]\d* MiB", printed)
    small = ["--gpu", -1, "--size", 64, 64, "--runs", 1]
    assert "15 connections" in succeed("measure.py", path["checkpoint"], *small)
    assert "all connections" in succeed("measure.py", path["search_checkpoint"], *small, "--type", "bfloat16")


@pytest.mark.slow
def test_export_as_a_command(path, tmp_path):
    printed = run("export.py", "--checkpoint", path["checkpoint"], "--out", tmp_path / "n.pt2", "--output", "classes")
    assert "equal to PyTorch at" in printed and (tmp_path / "n.pt2").exists()


def test_eval_in_batches_prints_the_same(path, data):
    alone, together = (succeed("eval_sparse_mask.py", "--pretrained_model", path["checkpoint"], "--gpu", -1,
                               "--batch_size", size, *folders(data, train=False)) for size in (1, 2))
    assert re.findall(r"[\d.]+$", alone, re.MULTILINE) == re.findall(r"[\d.]+$", together, re.MULTILINE)


@pytest.mark.slow
def test_compiling_without_a_compiler_is_one_sentence(path, data, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    printed = run("eval_sparse_mask.py", "--pretrained_model", path["checkpoint"], *folders(data, train=False),
                  "--gpu", -1, "--compile", code=2)
    assert "cannot be compiled here" in printed and "(--compile)" in printed


def test_eval_names_absent_classes(path, data, tmp_path):
    (tmp_path / "gt").mkdir()
    for name in ("n5", "n6"):
        Image.fromarray(np.ones((70, 76), np.uint8)).save(tmp_path / "gt" / f"{name}.png")
    printed = succeed("eval_sparse_mask.py", "--pretrained_model", path["checkpoint"], "--im_path", data / "img",
                      "--gt_path", tmp_path / "gt", "--eval_list", data / "val.txt", "--gpu", -1)
    assert "left out of the mean: ground, blue square" in printed and "nan" not in printed


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [2, 3])
@pytest.mark.parametrize("kind", ["search", "train"])
def test_a_resumed_run_equals_the_uninterrupted_one(path, data, tmp_path, monkeypatch, capsys, kind, stop_after):
    """Stopped by a signal inside an epoch (2) or at its end (3) and resumed: every tensor is equal."""
    import train_sparse_mask
    from utils import engine
    what = ["--search"] if kind == "search" else ["--mask_path", path["mask"]]
    options = [*what, *TINY, *folders(data), "--max_epoch", 2, "--exp_path", tmp_path]
    steps = iter(range(1, 99))

    def step(*arguments):
        result = train_step(*arguments)
        if next(steps) == stop_after:
            os.kill(os.getpid(), signal.SIGTERM if kind == "search" else signal.SIGINT)
        return result
    train_step = engine.train_step
    monkeypatch.setattr(engine, "train_step", step)
    parser = train_sparse_mask.build_parser()
    assert train_sparse_mask.main(parse(parser, list(map(str, options)))) == 130
    folder = only_run(tmp_path)
    assert f"--resume {folder}" in capsys.readouterr().out
    assert [p.name for p in folder.glob("checkpoint_[0-9]*")] == [f"checkpoint_{stop_after}.pth.tar"]

    succeed("train_sparse_mask.py", "--resume", folder)
    reference = torch.load(path[{"search": "search_checkpoint", "train": "checkpoint"}[kind]], weights_only=True)
    resumed = torch.load(folder / "checkpoint_6.pth.tar", weights_only=True)
    for name, value in reference["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name
    assert resumed["best_m_iou"] == reference["best_m_iou"]
    curve = json.loads((folder / "tensorboard.json").read_text())["train/loss"]
    assert [row[1] for row in curve] == [1, 2, 3, 4, 5, 6]


def test_the_same_seed_gives_the_same_run_with_any_number_of_workers(path, data, tmp_path):
    succeed("train_sparse_mask.py", "--mask_path", path["mask"], *TINY, *folders(data), "--max_epoch", 2,
            "--eval_interval", 2, "--n_worker", 2, "--exp_path", tmp_path)
    one, other = (read_checkpoint(folder / "checkpoint_6.pth.tar").state
                  for folder in (path["train"], only_run(tmp_path)))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.slow
def test_deterministic_algorithms_give_the_same_digits_on_a_cpu(path, data, tmp_path):
    run("train_sparse_mask.py", "--search", *TINY, *folders(data), "--max_epoch", 2, "--eval_interval", 2,
        "--deterministic", "--exp_path", tmp_path)
    one, other = (read_checkpoint(folder / "checkpoint_6.pth.tar").state
                  for folder in (path["search"], only_run(tmp_path)))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_resume_refuses_other_settings_and_finished_runs_end_at_once(path, data, tmp_path):
    assert "seed was 0, not 1" in refuse("train_sparse_mask.py", "--resume", path["train"], "--seed", 1)
    (tmp_path / "short.txt").write_text("n0\nn1\n")
    before = path["checkpoint"].read_bytes()
    message = refuse("train_sparse_mask.py", "--resume", path["train"], "--training_list", tmp_path / "short.txt")
    assert "6 iterations" in message and "short.txt" in message
    assert "done" in succeed("train_sparse_mask.py", "--resume", path["train"])
    assert path["checkpoint"].read_bytes() == before


def test_resuming_an_older_checkpoint_does_not_delete_later_ones(path, data, tmp_path):
    succeed("train_sparse_mask.py", "--mask_path", "fcn", *TINY, *folders(data), "--max_epoch", 2, "--keep_all",
            "--exp_path", tmp_path)
    folder = only_run(tmp_path)
    message = refuse("train_sparse_mask.py", "--resume", folder / "checkpoint_3.pth.tar")
    assert "later checkpoint, checkpoint_6.pth.tar" in message
    (folder / "checkpoint_6.pth.tar").unlink()
    succeed("train_sparse_mask.py", "--resume", folder / "checkpoint_3.pth.tar")
    assert (folder / "checkpoint_3.pth.tar").exists() and (folder / "checkpoint_6.pth.tar").exists()


@pytest.mark.slow
def test_a_bad_file_found_late_costs_nothing_that_was_learned(data, tmp_path):
    """An image of the eval list breaks: the epoch before it is saved, the log says why, and the run resumes."""
    broken = tmp_path / "img"
    shutil.copytree(data / "img", broken)
    (broken / "n6.jpg").write_text("no image")
    options = [*folders(data), "--im_path", broken]
    message = run("train_sparse_mask.py", "--mask_path", "fcn", *TINY, *options, "--max_epoch", 1,
                  "--exp_path", tmp_path / "runs", code=2)
    folder = only_run(tmp_path / "runs")
    assert "n6.jpg cannot be read" in message and f"--resume {folder}" in message
    assert "n6.jpg" in (folder / "log.txt").read_text()
    assert (folder / "checkpoint_3.pth.tar").exists()
    assert "done" in succeed("train_sparse_mask.py", "--resume", folder, "--im_path", data / "img")


def test_nothing_but_void_is_no_score(path, data, tmp_path):
    (tmp_path / "gt").mkdir()
    for name in ("n5", "n6"):
        Image.new("L", (76, 70), 255).save(tmp_path / "gt" / f"{name}.png")
    message = refuse("eval_sparse_mask.py", "--pretrained_model", path["checkpoint"], *folders(data, train=False),
                     "--gt_path", tmp_path / "gt", "--gpu", -1)
    assert "only void" in message


def test_ft_model_starts_from_the_trained_weights(path, data, tmp_path):
    succeed("train_sparse_mask.py", "--ft_model", path["checkpoint"], *TINY, *folders(data), "--max_epoch", 1, "--lr",
            0, "--exp_path", tmp_path)
    before = read_checkpoint(path["checkpoint"]).state
    after = read_checkpoint(only_run(tmp_path) / "checkpoint_3.pth.tar").state
    assert read_checkpoint(only_run(tmp_path) / "checkpoint_3.pth.tar").class_names[1] == "green square"
    name = "decoders.Decoders_8.down_convs.0.weight"
    assert torch.equal(before[name], after[name])
    assert not torch.equal(before["backbone.bn1.running_mean"], after["backbone.bn1.running_mean"])


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
def test_other_types_train(data, tmp_path, kind):
    succeed("train_sparse_mask.py", "--mask_path", "fcn", *TINY, *folders(data), "--max_epoch", 1, "--type", kind,
            "--exp_path", tmp_path)
    state = read_checkpoint(only_run(tmp_path) / "checkpoint_3.pth.tar").state
    assert state["fc_conv.weight"].dtype == (torch.float64 if kind == "float64" else torch.float32)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(data, tmp_path):
    code, printed = call("train_sparse_mask.py", "--mask_path", "fcn", *TINY, *folders(data), "--max_epoch", 9, "--lr",
                         1e9, "--exp_path", tmp_path)
    assert code == 1 and re.search(r"stopped: .* iteration \d+", printed)
    for checkpoint in only_run(tmp_path).glob("*.pth.tar"):
        assert all(torch.isfinite(v).all() for v in read_checkpoint(checkpoint).state.values())


def test_bad_input_to_a_process_is_one_line_and_exit_code_2(path):
    message = run("prune.py", "--checkpoint", path["checkpoint"], code=2)
    assert message.startswith("prune.py: error:") and message.count("\n") == 1


def test_a_wrong_option_is_named(path):
    outcome = call("prune.py", "--checkpoint", path["checkpoint"], "--no_such_flag")
    assert outcome.code == 2 and "--no_such_flag" in outcome.text


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script):
    outcome = call(script, "--help")
    assert outcome.code == 0 and f"usage: {script}" in outcome.text and "options:" in outcome.text


@pytest.mark.parametrize("words, change", [
    ("momentum has the shape", lambda c: c["optimizer"]["state"][0].update(momentum_buffer=torch.zeros(2, 2))),
    ("random numbers is damaged", lambda c: c["random_state"].update(cpu=torch.zeros(3, dtype=torch.uint8))),
    ("of another run", lambda c: c["optimizer"]["param_groups"].pop()),
    ("setting type is 'int9'", lambda c: c["settings"].update(type="int9")),
    ("setting lr is 'x'", lambda c: c["settings"].update(lr="x")),
    ("iteration 99 of 6", lambda c: c.update(iter=99))])
def test_a_damaged_state_is_not_resumed(path, tmp_path, words, change):
    content = torch.load(path["checkpoint"], weights_only=True)
    change(content)
    torch.save(content, tmp_path / "checkpoint_6.pth.tar")
    outcome = call("train_sparse_mask.py", "--resume", tmp_path)
    assert outcome.code == 2 and words in outcome.text and "\n" not in outcome.text


def test_a_damaged_log_is_put_aside(path, tmp_path):
    shutil.copytree(path["search"], tmp_path / "run")
    for name, text in (("tensorboard.json", "[1, 2]"), ("strengths.csv", "iteration,a\nhello,world\n")):
        (tmp_path / "run" / name).write_text(text)
    outcome = call("train_sparse_mask.py", "--resume", tmp_path / "run")
    assert outcome.code == 0 and outcome.text.count("is damaged") == 2
    assert (tmp_path / "run/tensorboard.json.damaged").read_text() == "[1, 2]"


def test_a_run_goes_on_when_nobody_reads_its_screen(data, tmp_path):
    command = shlex.join(map(str, [sys.executable, "train_sparse_mask.py", "--mask_path", "fcn", *TINY, *folders(data),
                                   "--max_epoch", 1, "--exp_path", tmp_path]))
    subprocess.run(f"{command} 2>&1 | true", shell=True, cwd=ROOT, check=True)
    assert (only_run(tmp_path) / "checkpoint_3.pth.tar").exists()


def test_thresholds_that_differ_write_masks_of_other_names(path):
    succeed("prune.py", "--checkpoint", path["out"] / "found.pth.tar", "--thres", 0.00100000001)
    assert (path["out"] / "mask_thres_0.00100000001.npy").exists()
