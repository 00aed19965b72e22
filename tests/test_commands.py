"""The four scripts as commands, end to end on a few tiny images: what they write, resume, and say of bad input."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from models import SparseMask, connectivity
from utils.checkpoint import read_checkpoint

TINY = ["--pretrained_model", "none", "--gpu", "-1", "--depth", "4", "--n_class", "3", "--crop_size", "64",
        "--batch_size", "2", "--n_worker", "0", "--log_interval", "1"]


def run(*command, code=0):
    """Runs a script of the repository; returns what it printed. One thread: the inputs are tiny."""
    result = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, text=True, capture_output=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
    assert result.returncode == code, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Five training and two validation images of bright squares, as anyone's own data: folders and lists."""
    root = tmp_path_factory.mktemp("data")
    (root / "img").mkdir()
    (root / "gt").mkdir()
    rng = np.random.default_rng(0)
    for i in range(7):
        image, label = rng.integers(0, 60, (70, 76, 3), dtype=np.uint8), np.zeros((70, 76), np.uint8)
        for value in (1, 2):
            y, x = rng.integers(0, 50, 2)
            image[y:y + 20, x:x + 20, value] = 220
            label[y:y + 20, x:x + 20] = value
        Image.fromarray(image).save(root / "img" / f"n{i}.jpg")
        Image.fromarray(label).save(root / "gt" / f"n{i}.png")
    (root / "train.txt").write_text("".join(f"n{i}\n" for i in range(5)))
    (root / "val.txt").write_text("n5\nn6\n")
    (root / "names.txt").write_text("ground\ngreen square\nblue square\n")
    return root


def folders(data, train=True):
    options = ["--im_path", data / "img", "--gt_path", data / "gt", "--eval_list", data / "val.txt"]
    return options + (["--training_list", data / "train.txt"] if train else [])


def only_run(path):
    runs = list(path.iterdir())
    assert len(runs) == 1
    return runs[0]


@pytest.fixture(scope="session")
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
        assert {"log.txt", "settings.json", "source", "tensorboard_log", "tensorboard.json", "checkpoint_6.pth.tar",
                "checkpoint_best.pth.tar"} == names
        assert json.loads((folder / "settings.json").read_text())["crop_size"] == 64
        assert (folder / "source" / "models" / "fusion.py").read_text() == (ROOT / "models/fusion.py").read_text()
        scalars = json.loads((folder / "tensorboard.json").read_text())
        assert curves | {"train/loss", "val/m_iou"} <= set(scalars)
        assert [row[1] for row in scalars["train/loss"]] == [1, 2, 3, 4, 5, 6]
        assert "val mIoU" in (folder / "log.txt").read_text()


def test_prune_finds_the_connectivity_and_reports_it(path):
    assert (np.load(path["mask"], allow_pickle=False) == connectivity.published()).all()
    assert "15 connections in 4 stages" in path["pruned"] and "a gap of" in path["pruned"]
    text = path["mask"].with_suffix(".txt").read_text()
    assert "D[8] <- D[3]" in text and "threshold 0.001" in text
    after = SparseMask(connectivity.published(), depth=4, num_classes=3)
    assert f"{sum(p.numel() for p in after.parameters()):,} pruned" in path["pruned"]


def test_eval_prints_the_score_of_the_log(path, data):
    printed = run("eval_sparse_mask.py", "--pretrained_model", path["checkpoint"], *folders(data, train=False),
                  "--gpu", -1, "--mask_path", path["mask"])
    score = re.search(r"^mIoU +([\d.]+)$", printed, re.MULTILINE)[1]
    last = re.findall(r"val mIoU ([\d.]+)", (path["train"] / "log.txt").read_text())[-1]
    assert score == last
    assert "green square" in printed and "pixel accuracy" in printed


def test_eval_in_batches_prints_the_same(path, data):
    alone, together = (run("eval_sparse_mask.py", "--pretrained_model", path["checkpoint"], "--gpu", -1, "--batch_size",
                           size, *folders(data, train=False)) for size in (1, 2))
    assert re.findall(r"[\d.]+$", alone, re.MULTILINE) == re.findall(r"[\d.]+$", together, re.MULTILINE)


def test_compiling_without_a_compiler_is_one_sentence(path, data, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    printed = run("eval_sparse_mask.py", "--pretrained_model", path["checkpoint"], *folders(data, train=False),
                  "--gpu", -1, "--compile", code=2)
    assert "cannot be compiled here" in printed and "--compile out" in printed


def test_eval_names_absent_classes(path, data, tmp_path):
    (tmp_path / "gt").mkdir()
    for name in ("n5", "n6"):
        Image.fromarray(np.ones((70, 76), np.uint8)).save(tmp_path / "gt" / f"{name}.png")
    printed = run("eval_sparse_mask.py", "--pretrained_model", path["checkpoint"], "--im_path", data / "img",
                  "--gt_path", tmp_path / "gt", "--eval_list", data / "val.txt", "--gpu", -1)
    assert "left out of the mean: ground, blue square" in printed and "nan" not in printed


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
    args = parser.parse_args(list(map(str, options)))
    args.given = set()
    assert train_sparse_mask.main(args) == 130
    folder = only_run(tmp_path)
    assert f"--resume {folder}" in capsys.readouterr().out
    assert [p.name for p in folder.glob("checkpoint_[0-9]*")] == [f"checkpoint_{stop_after}.pth.tar"]

    run("train_sparse_mask.py", "--resume", folder)
    reference = torch.load(path[{"search": "search_checkpoint", "train": "checkpoint"}[kind]], weights_only=True)
    resumed = torch.load(folder / "checkpoint_6.pth.tar", weights_only=True)
    for name, value in reference["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name
    assert resumed["best_m_iou"] == reference["best_m_iou"]
    curve = json.loads((folder / "tensorboard.json").read_text())["train/loss"]
    assert [row[1] for row in curve] == [1, 2, 3, 4, 5, 6]


def test_resume_refuses_other_settings_and_finished_runs_end_at_once(path, data, tmp_path):
    assert "--lr was 0.005" in run("train_sparse_mask.py", "--resume", path["train"], "--lr", 0.1, code=2)
    (tmp_path / "short.txt").write_text("n0\nn1\n")
    before = path["checkpoint"].read_bytes()
    message = run("train_sparse_mask.py", "--resume", path["train"], "--training_list", tmp_path / "short.txt", code=2)
    assert "6 iterations" in message and "short.txt" in message
    assert "done" in run("train_sparse_mask.py", "--resume", path["train"])
    assert path["checkpoint"].read_bytes() == before


def test_resuming_an_older_checkpoint_does_not_delete_later_ones(path, data, tmp_path):
    run("train_sparse_mask.py", "--mask_path", "fcn", *TINY, *folders(data), "--max_epoch", 2, "--keep_all",
        "--exp_path", tmp_path)
    folder = only_run(tmp_path)
    message = run("train_sparse_mask.py", "--resume", folder / "checkpoint_3.pth.tar", code=2)
    assert "later checkpoint, checkpoint_6.pth.tar" in message
    (folder / "checkpoint_6.pth.tar").unlink()
    run("train_sparse_mask.py", "--resume", folder / "checkpoint_3.pth.tar")
    assert (folder / "checkpoint_3.pth.tar").exists() and (folder / "checkpoint_6.pth.tar").exists()


def test_a_bad_file_found_late_costs_nothing_that_was_learned(data, tmp_path):
    """A label of the eval list breaks: the epoch before it is saved, the log says why, and the run resumes."""
    broken = tmp_path / "gt"
    shutil.copytree(data / "gt", broken)
    Image.new("L", (76, 70), 7).save(broken / "n6.png")
    options = [*folders(data), "--gt_path", broken]
    message = run("train_sparse_mask.py", "--mask_path", "fcn", *TINY, *options, "--max_epoch", 1,
                  "--exp_path", tmp_path / "runs", code=2)
    folder = only_run(tmp_path / "runs")
    assert "n6.png has the value 7" in message and f"--resume {folder}" in message
    assert "n6.png" in (folder / "log.txt").read_text()
    assert (folder / "checkpoint_3.pth.tar").exists()
    run("train_sparse_mask.py", "--resume", folder, "--gt_path", data / "gt")


def test_nothing_but_void_is_no_score(path, data, tmp_path):
    (tmp_path / "gt").mkdir()
    for name in ("n5", "n6"):
        Image.new("L", (76, 70), 255).save(tmp_path / "gt" / f"{name}.png")
    message = run("eval_sparse_mask.py", "--pretrained_model", path["checkpoint"], *folders(data, train=False),
                  "--gt_path", tmp_path / "gt", "--gpu", -1, code=2)
    assert "only void" in message


def test_ft_model_starts_from_the_trained_weights(path, data, tmp_path):
    run("train_sparse_mask.py", "--ft_model", path["checkpoint"], *TINY, *folders(data), "--max_epoch", 1, "--lr", 0,
        "--exp_path", tmp_path)
    before = read_checkpoint(path["checkpoint"]).state
    after = read_checkpoint(only_run(tmp_path) / "checkpoint_3.pth.tar").state
    assert read_checkpoint(only_run(tmp_path) / "checkpoint_3.pth.tar").class_names[1] == "green square"
    name = "decoders.Decoders_8.down_convs.0.weight"
    assert torch.equal(before[name], after[name])
    assert not torch.equal(before["backbone.bn1.running_mean"], after["backbone.bn1.running_mean"])


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
def test_other_types_train(data, tmp_path, kind):
    run("train_sparse_mask.py", "--mask_path", "fcn", *TINY, *folders(data), "--max_epoch", 1, "--type", kind,
        "--exp_path", tmp_path)
    state = read_checkpoint(only_run(tmp_path) / "checkpoint_3.pth.tar").state
    assert state["fc_conv.weight"].dtype == (torch.float64 if kind == "float64" else torch.float32)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(data, tmp_path):
    printed = run("train_sparse_mask.py", "--mask_path", "fcn", *TINY, *folders(data), "--max_epoch", 9, "--lr", 1e18,
                  "--exp_path", tmp_path, code=1)
    assert re.search(r"stopped: .* iteration \d+", printed)
    for checkpoint in only_run(tmp_path).glob("*.pth.tar"):
        assert all(torch.isfinite(v).all() for v in read_checkpoint(checkpoint).state.values())


def bad_inputs(path, data):
    """(command, words that the sentence must hold)."""
    train, prune, evaluate = "train_sparse_mask.py", "prune.py", "eval_sparse_mask.py"
    tmp = path["out"]
    np.save(tmp / "shape.npy", np.zeros((9, 9), bool))
    np.save(tmp / "object.npy", np.array([{}], object), allow_pickle=True)
    dangling = connectivity.fcn()
    dangling[8, 4, 1] = True
    np.save(tmp / "dangling.npy", dangling)
    (tmp / "cut.pth.tar").write_bytes(path["checkpoint"].read_bytes()[:5000])
    torch.save({"state_dict": {"features": torch.zeros(3)}}, tmp / "nothing.pth")
    torch.save({"state_dict": torch.load(path["checkpoint"], weights_only=True)["state_dict"], "settings": {}},
               tmp / "incomplete.pth.tar")
    (tmp / "bad_list.txt").write_text("n5\nmissing\n")
    (tmp / "file").write_text("")
    lists = folders(data)
    mask = ["--mask_path", "fcn"]
    return [
        ([train, *TINY, *lists], ["--search", "--mask_path"]),
        ([train, "--search", *mask, *TINY, *lists], ["--mask_path"]),
        ([train, *mask, *TINY, *lists, "--n_class", 0], ["--n_class is 0"]),
        ([train, *mask, *TINY, *lists, "--lr", "nan"], ["--lr"]),
        ([evaluate, "--pretrained_model", path["checkpoint"], "--batch_size", 0], ["--batch_size is 0"]),
        ([train, *mask, *TINY, *lists, "--crop_size", 31], ["--crop_size is 31"]),
        ([train, *mask, *TINY, *lists, "--n_class", 2], ["value 2", "n_class"]),
        ([train, *mask, *TINY, *lists, "--backbone_name", "vgg"], ["vgg", "mobilenet_v2"]),
        ([train, *mask, *TINY, *lists, "--exp_path", tmp / "file"], ["file"]),
        ([train, *mask, *TINY, *lists, "--eval_list", tmp / "bad_list.txt"], ["'missing'", "bad_list.txt"]),
        ([train, *mask, *TINY, *lists, "--eval_list", tmp / "none.txt"], ["none.txt", "does not exist"]),
        ([train, *mask, *TINY, *lists, "--class_names", tmp / "bad_list.txt"], ["2 class names", "3 classes"]),
        ([train, *mask, *TINY, *lists, "--pretrained_model", tmp / "nothing.pth"], ["none of the 1 tensors"]),
        ([train, *mask, *TINY, *lists, "--pretrained_model", tmp / "file"], ["cannot be read"]),
        ([train, "--mask_path", tmp / "shape.npy", *TINY, *lists], ["shape.npy", "(9, 9)", "(L, L, 2)"]),
        ([train, "--mask_path", tmp / "object.npy", *TINY, *lists], ["object.npy"]),
        ([train, "--mask_path", tmp / "dangling.npy", *TINY, *lists], ["stage 8 reads D[3]"]),
        ([train, "--mask_path", tmp / "none.npy", *TINY, *lists], ["none.npy", "does not exist"]),
        ([train, "--ft_model", path["search_checkpoint"], *TINY, *lists], ["is of a search"]),
        ([train, "--ft_model", path["checkpoint"], *TINY, *lists, "--n_class", 4], ["classes 3", "4 was given"]),
        ([train, "--resume", tmp / "nothing"], ["does not exist"]),
        ([train, *mask, *TINY, *lists, "--strength_warmup", 1], ["--strength_warmup is 1"]),
        ([train, *mask, *TINY, *lists, "--seed", 2 ** 64], ["--seed", "2^63"]),
        ([train, *mask, *TINY, *lists, "--crop_size", 10 ** 9], ["--crop_size"]),
        ([train, *mask, *TINY, *lists, "--backbone_name", "torch.nn:Linear"], ["torch.nn:Linear"]),
        ([train, *mask, *TINY, *lists, "--eval_list", tmp / ("a" * 300)], ["cannot be reached"]),
        ([train, "--resume", tmp / "incomplete.pth.tar"], ["cannot be resumed", "optimizer"]),
        ([prune, "--checkpoint", path["checkpoint"]], ["is of training"]),
        ([prune, "--checkpoint", tmp / "found.pth.tar", "--backbone_name", "vgg"], ["vgg"]),
        ([prune, "--checkpoint", tmp / "cut.pth.tar"], ["cut.pth.tar", "cannot be read"]),
        ([prune, "--checkpoint", tmp / "nothing.pth"], ["no checkpoint of a search or a training"]),
        ([prune, "--checkpoint", tmp / "found.pth.tar", "--depth", 8], ["depth 4", "8 was given"]),
        ([prune, "--checkpoint", tmp / "found.pth.tar", "--thres", 1.5], ["threshold is 1.5"]),
        ([prune, "--checkpoint", tmp / "weak.pth.tar"], ["nothing is left"]),
        ([evaluate, "--pretrained_model", path["search_checkpoint"], *folders(data, False)], ["is of a search"]),
        ([evaluate, "--pretrained_model", path["checkpoint"], *folders(data, False), "--mask_path", "unet"],
         ["unet", "not the connectivity"]),
        ([evaluate, "--pretrained_model", path["checkpoint"], *folders(data, False), "--gpu", -2], ["--gpu is -2"]),
    ]


def test_bad_input_is_one_sentence_and_exit_code_2(path, data):
    """In this process, for the speed of it; that a script turns it into exit code 2 is shown above and below."""
    import eval_sparse_mask
    import prune
    import train_sparse_mask
    from utils.errors import InputError, given_options
    scripts = {"train_sparse_mask.py": train_sparse_mask, "prune.py": prune, "eval_sparse_mask.py": eval_sparse_mask}
    before = sorted(path["out"].rglob("*"))
    for (script, *options), words in bad_inputs(path, data):
        options = [str(option) for option in options]
        if "value 2" in words:
            options += ["--exp_path", str(path["out"] / "started")]  # this one is only found while loading
        parser = scripts[script].build_parser()
        args = parser.parse_args(options)
        args.given = given_options(parser, options)
        with pytest.raises(InputError) as error:
            scripts[script].main(args)
        message = str(error.value)
        assert "\n" not in message and all(word in message for word in words), (options, message)
    new = set(path["out"].rglob("*")) - set(before)
    assert not [p for p in new if p.suffix in (".npy", ".tar") and p.name not in
                ("shape.npy", "object.npy", "dangling.npy", "cut.pth.tar", "incomplete.pth.tar")]


def test_bad_input_as_commands(path, tmp_path):
    message = run("prune.py", "--checkpoint", path["checkpoint"], code=2)
    assert message.startswith("prune.py: error:") and message.count("\n") == 1
    for script in ("train_sparse_mask.py", "prune.py", "eval_sparse_mask.py"):
        assert "usage" in run(script, "--help")
        run(script, "--no_such_flag", code=2)
