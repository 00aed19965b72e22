"""Resuming with other options, fine-tuning for other classes, and that each command that is advised works."""
import json
import re
import shlex
import shutil

import pytest
import torch
from PIL import Image

from helpers import TINY, call, folders, only_run
from utils import engine
from utils.checkpoint import Checkpoint, read_checkpoint
from utils.run import NotFinite
from utils.run_length import resumed_length, stored_length

TRAIN, EVAL = "train_sparse_mask.py", "eval_sparse_mask.py"


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """{kind: folder} of a training and a search of two epochs of three steps, with the checkpoints of both."""
    out = tmp_path_factory.mktemp("runs")
    for kind, task in (("train", ["--mask_path", "fcn"]), ("search", ["--search"])):
        outcome = call(TRAIN, *task, *TINY, *folders(data), "--max_epoch", 2, "--keep_all", "--class_names",
                       data / "names.txt", "--exp_path", out / kind)
        assert outcome.code == 0, outcome.text
    return {kind: only_run(out / kind) for kind in ("train", "search")}


@pytest.fixture
def folder(runs, tmp_path):
    """A copy of the training's folder."""
    return shutil.copytree(runs["train"], tmp_path / "run")


@pytest.fixture
def search(runs, tmp_path):
    """A copy of the search's folder."""
    return shutil.copytree(runs["search"], tmp_path / "search")


@pytest.fixture
def at_3(folder):
    """The training's folder as after its first epoch."""
    (folder / "checkpoint_6.pth.tar").unlink()
    return folder


def succeed(*arguments):
    outcome = call(*arguments)
    assert outcome.code == 0, outcome.text
    return outcome.text


def refuse(*arguments):
    outcome = call(*arguments)
    assert outcome.code == 2 and "\n" not in outcome.text, outcome.text
    return outcome.text


def advised(text):
    """The commands that a text prints, as arguments of `call`."""
    return [shlex.split(line) for line in re.findall(r"python (\S+\.py .*)", text)]


def content_of(folder, iteration):
    return torch.load(folder / f"checkpoint_{iteration}.pth.tar", weights_only=True)


def fail_at(monkeypatch, step, error):
    """The step of that number (from 1, of all later runs together) raises the error; all others are as ever."""
    steps, original = iter(range(1, 1000)), engine.train_step

    def train_step(*arguments):
        if next(steps) == step:
            raise error
        return original(*arguments)
    monkeypatch.setattr(engine, "train_step", train_step)


def test_a_finished_run_is_prolonged_and_says_what_its_schedule_becomes(folder):
    printed = succeed(TRAIN, "--resume", folder, "--max_epoch", 3, "--lr", 0.001, "--n_worker", 1)
    assert "changed: n_worker 0 -> 1, max_epoch 2 -> 3, lr 0.005 -> 0.001" in printed
    assert "now has 9 iterations, it had 6" in printed
    rate = 0.001 * (1 - 6 / 9) ** 0.9
    assert f"the learning rate goes on at {rate:.3g}, it was 0" in printed
    assert "iteration 9: val mIoU" in printed and "changed: n_worker" in (folder / "log.txt").read_text()
    settings = json.loads((folder / "settings.json").read_text())
    assert (settings["max_epoch"], settings["lr"], settings["n_worker"]) == (3, 0.001, 1)
    content = content_of(folder, 9)
    assert content["settings"]["lr"] == 0.001 and content["iterations"] == 9 and content["shift"] == 0
    assert read_checkpoint(folder / "checkpoint_9.pth.tar").class_names[1] == "green square"
    curve = json.loads((folder / "tensorboard.json").read_text())
    assert [row[1] for row in curve["train/loss"]] == list(range(1, 10))
    assert curve["train/base_lr"][6][2] == pytest.approx(rate)


def test_what_changed_stays_changed_even_after_a_kill(at_3, monkeypatch):
    """A resumed run that never reaches its next checkpoint has written its settings into the one before."""
    fail_at(monkeypatch, 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        call(TRAIN, "--resume", at_3, "--decay", 0.001, "--momentum", 0.5)
    printed = succeed(TRAIN, "--resume", at_3)
    assert "changed: " not in printed
    settings = content_of(at_3, 6)["settings"]
    assert (settings["decay"], settings["momentum"], settings["lr"]) == (0.001, 0.5, 0.005)


def test_changes_of_no_effect_leave_the_run_bit_identical(runs, at_3):
    """The same rate given as an option, other workers and another interval: the same tensors."""
    succeed(TRAIN, "--resume", at_3, "--lr", 0.005, "--n_worker", 1, "--save_interval", 1)
    before, after = content_of(runs["train"], 6), content_of(at_3, 6)
    assert all(torch.equal(value, after["state_dict"][name]) for name, value in before["state_dict"].items())
    assert after["best_m_iou"] == before["best_m_iou"]


@pytest.mark.parametrize("done, batch_size, start, total", [
    (3, 1, 0, 3 + 5),  # at the end of an epoch: 3 iterations, then 5 of one image
    (5, 1, 4, 5 + 1),  # 4 images of 5 are done
    (4, 1, 2, 4 + 3),
    (5, 3, 1, 5 + 1),  # 3 images are a batch, the fourth is done again
    (4, 5, 0, 4 + 1)])  # 2 images are not a batch: the epoch begins again
def test_another_batch_size_continues_at_the_image(done, batch_size, start, total):
    """Of a run of two epochs over 5 images, two a batch."""
    checkpoint = Checkpoint("", "train", {}, 4, 3, {}, content={
        "iter": done, "iterations": 6, "settings": {"max_epoch": 2, "batch_size": 2}})
    length = resumed_length(checkpoint, -(-5 // batch_size), batch_size, 2)
    assert divmod(done + length.shift, length.epoch_length) == (1, start) and length.iterations == total
    checkpoint.content.update(iterations=total, shift=length.shift, settings={"max_epoch": 2, "batch_size": batch_size})
    assert stored_length(checkpoint) == length
    assert resumed_length(checkpoint, length.epoch_length, batch_size, 2) == length
    assert resumed_length(checkpoint, length.epoch_length, batch_size, 3).iterations == total + length.epoch_length


@pytest.mark.parametrize("batch_size, start, total", [(1, 4, 6), (5, 0, 6)])
def test_a_run_stopped_inside_an_epoch_goes_on_with_other_batches(at_3, monkeypatch, batch_size, start, total):
    fail_at(monkeypatch, 3, NotFinite("stop"))
    call(TRAIN, "--resume", at_3, "--save_interval", 1)
    monkeypatch.undo()
    started, original = [], engine.Trainer.run_epoch
    monkeypatch.setattr(engine.Trainer, "run_epoch",
                        lambda trainer, stop: (started.append(trainer.position), original(trainer, stop)))
    printed = succeed(TRAIN, "--resume", at_3, "--batch_size", batch_size)
    assert started == [(1, start)] and f"batch_size 2 -> {batch_size}" in printed
    assert f"epoch 2, iteration {total}: val mIoU" in printed and "epoch 1," not in printed
    printed = succeed(TRAIN, "--resume", at_3, "--max_epoch", 3)  # the shift is stored
    assert f"epoch 3, iteration {total + -(-5 // batch_size)}: val mIoU" in printed


def test_the_epochs_that_are_done_cannot_be_undone(folder):
    message = refuse(TRAIN, "--resume", folder, "--max_epoch", 1)
    assert "has done 2 epochs" in message and "at least 2" in message and "--max_epoch" in message
    assert "changed: lr" in succeed(TRAIN, "--resume", folder, "--max_epoch", 2, "--lr", 1)  # what is advised


def test_a_run_can_end_at_once(at_3):
    printed = succeed(TRAIN, "--resume", at_3, "--max_epoch", 1)
    assert "now has 3 iterations, it had 6" in printed and "done: " in printed
    assert content_of(at_3, 3)["iterations"] == 3


def test_a_run_that_is_done_says_how_it_is_prolonged(folder):
    assert "a larger --max_epoch prolongs it" in succeed(TRAIN, "--resume", folder)
    assert "iteration 9" in succeed(TRAIN, "--resume", folder, "--max_epoch", 3)


def test_the_type_may_change(at_3):
    before = "float32"
    for epochs, kind in ((1, "bfloat16"), (2, "float64"), (3, "float32")):
        printed = succeed(TRAIN, "--resume", at_3, "--type", kind, "--max_epoch", epochs)
        assert f"type {before} -> {kind}" in printed
        content, dtype = content_of(at_3, 3 * epochs), torch.float64 if kind == "float64" else torch.float32
        if epochs > 1:
            assert content["state_dict"]["fc_conv.weight"].dtype == dtype
            assert content["optimizer"]["state"][0]["momentum_buffer"].dtype == dtype
        before = kind


def test_loss_scaling_begins_and_ends_with_the_type(at_3):
    succeed(TRAIN, "--resume", at_3, "--type", "float16", "--max_epoch", 1)  # no step
    assert content_of(at_3, 3)["scaler"]["scale"] == 2 ** 16
    succeed(TRAIN, "--resume", at_3, "--type", "float32")
    assert content_of(at_3, 3)["scaler"] == {}


def test_a_run_in_double_precision_resumes_exactly(data, tmp_path):
    options = ["--mask_path", "fcn", *TINY, *folders(data), "--max_epoch", 2, "--type", "float64", "--keep_all"]
    succeed(TRAIN, *options, "--exp_path", tmp_path)
    folder = only_run(tmp_path)
    before = content_of(folder, 6)["state_dict"]
    (folder / "checkpoint_6.pth.tar").unlink()
    succeed(TRAIN, "--resume", folder)
    assert all(torch.equal(value, before[name]) for name, value in content_of(folder, 6)["state_dict"].items())


def test_another_eval_list_begins_the_best_anew(data, folder):
    (data / "other.txt").write_text("n0\nn1\n")
    content = content_of(folder, 6)
    content["best_m_iou"] = 2.0
    torch.save(content, folder / "checkpoint_6.pth.tar")
    printed = succeed(TRAIN, "--resume", folder, "--eval_list", data / "other.txt")
    assert "the best mIoU starts anew" in printed and "epoch 2, iteration 6: val mIoU" in printed
    assert 0 <= content_of(folder, 6)["best_m_iou"] <= 1
    assert "anew" not in succeed(TRAIN, "--resume", folder, "--eval_list", data / "." / "other.txt")


def test_a_search_says_what_follows_from_its_new_length(search):
    printed = succeed(TRAIN, "--resume", search, "--max_epoch", 3, "--sparse", 0.1)
    assert "sparse 0.01 -> 0.1" in printed and "max_epoch 2 -> 3" in printed
    assert f"strength_lr_mult {33100 / 6 / 0.7:.3g} -> {33100 / 9 / 0.7:.3g}" in printed
    assert "annealing" in printed and "iteration 9: val mIoU" in printed
    assert "strength_lr_mult" not in succeed(TRAIN, "--resume", search, "--lr", 0.001)


@pytest.mark.parametrize("kind, change, words", [
    ("train", ["--seed", 3, "--n_class", 5, "--lr", 0.001], "--ft_model"),
    ("train", ["--depth", 5], "--mask_path fcn"),
    ("train", ["--init", "fan_in"], "--mask_path fcn"),
    ("train", ["--search"], "--search"),
    ("train", ["--ft_model", "FILE"], "--ft_model"),
    ("search", ["--strengths", "clamp"], "--strengths clamp"),
    ("search", ["--n_class", 4], "--search"),
    ("search", ["--mask_path", "fcn"], "--mask_path fcn")])
def test_what_cannot_change_is_refused_with_a_command_that_works(runs, folder, search, kind, change, words):
    run = {"train": folder, "search": search}[kind]
    before = sorted(run.iterdir())
    change = [runs["train"] / "checkpoint_3.pth.tar" if word == "FILE" else word for word in change]
    message = refuse(TRAIN, "--resume", run, *change)
    assert " was " in message and "leave the option out" in message and words in message
    assert sorted(run.iterdir()) == before
    command, = advised(message)
    assert all(str(word) in command for word in change)
    printed = succeed(*command, "--max_epoch", 1)
    assert "done: " in printed


def test_a_changed_value_that_no_run_can_have_is_refused_for_that(folder):
    assert "give 1 to" in refuse(TRAIN, "--resume", folder, "--n_class", 0)
    assert "leave the option out" in refuse(TRAIN, "--resume", folder, "--exp_path", folder)


def test_another_training_list_is_refused_with_a_command_that_works(data, folder, tmp_path):
    (data / "short.txt").write_text("n0\nn1\n")
    message = refuse(TRAIN, "--resume", folder, "--training_list", data / "short.txt", "--lr", 0.001)
    assert "6 iterations" in message and "short.txt" in message
    command, = advised(message)
    assert "0.001" in command and str(data / "short.txt") in command
    assert "2 images" in succeed(*command, "--exp_path", tmp_path / "new")


@pytest.mark.parametrize("kind, option, value", [("float32", "--lr", "0.0005"), ("float16", "--type", "float32")])
@pytest.mark.parametrize("step", [2, 5])  # before the first checkpoint, and after it
def test_the_commands_after_a_nan_are_run_and_go_on(data, tmp_path, monkeypatch, kind, option, value, step):
    fail_at(monkeypatch, step, NotFinite("the loss is nan"))
    code, printed = call(TRAIN, "--mask_path", "fcn", *TINY, *folders(data), "--max_epoch", 2, "--type", kind,
                         "--exp_path", tmp_path)
    assert code == 1 and "stopped: the loss is nan at iteration" in printed
    commands = advised(printed)
    assert len(commands) == (1 if kind == "float32" else 2)
    command = commands[-1]
    assert ("--resume" in command) == (step == 5)
    if step == 2 and option == "--type":
        assert "--type" not in command  # it is the default
    else:
        assert command[command.index(option) + 1] == value
    printed = succeed(*command)
    assert "epoch 2, iteration 6" in printed
    assert ("changed: " in printed) == (step == 5)


def test_after_running_out_of_memory_the_advice_can_be_followed(data, tmp_path, monkeypatch):
    fail_at(monkeypatch, 5, MemoryError())
    message = call(TRAIN, "--mask_path", "fcn", *TINY, *folders(data), "--max_epoch", 2, "--exp_path", tmp_path).text
    assert "the memory ran out; give a smaller --batch_size or --crop_size, or --type bfloat16" in message
    folder = only_run(tmp_path)
    command, = advised((folder / "log.txt").read_text())
    for option in (["--batch_size", 1], ["--crop_size", 48, 40], ["--type", "bfloat16"]):
        copy = shutil.copytree(folder, tmp_path / option[0])
        printed = succeed(TRAIN, "--resume", copy, *option)
        assert "changed: " in printed and "epoch 2" in printed
    assert "done: " in succeed(*command)


def test_ft_model_keeps_all_but_the_head_for_other_classes(runs, data, tmp_path):
    names = tmp_path / "five.txt"
    names.write_text("a\nb\nc\nd\ne\n")
    start = [TRAIN, "--ft_model", runs["train"] / "checkpoint_6.pth.tar", "--gpu", -1, "--crop_size", 64, "--n_worker",
             0, *folders(data), "--max_epoch", 1, "--lr", 0]
    printed = succeed(*start, "--n_class", 5, "--class_names", names, "--exp_path", tmp_path / "five")
    assert "its head is for 3 classes: a new one, for 5, starts from random weights" in printed
    before = content_of(runs["train"], 6)["state_dict"]
    after = read_checkpoint(next(only_run(tmp_path / "five").glob("checkpoint_[0-9]*")))
    assert after.num_classes == 5 and after.class_names == list("abcde")
    assert after.state["fc_conv.weight"].shape[0] == 5
    for name in ("backbone.conv1.weight", "decoders.Decoders_8.down_convs.0.weight"):
        assert torch.equal(before[name], after.state[name])
    printed = succeed(*start, "--n_class", 4, "--exp_path", tmp_path / "four")
    four = read_checkpoint(next(only_run(tmp_path / "four").glob("checkpoint_[0-9]*")))
    assert four.class_names == [f"class {i}" for i in range(4)]
    succeed(*start, "--n_class", 5, "--init", "fan_in", "--exp_path", tmp_path / "fan_in")
    other = read_checkpoint(next(only_run(tmp_path / "fan_in").glob("checkpoint_[0-9]*"))).state
    factor = other["fc_conv.weight"] / after.state["fc_conv.weight"]  # the same random numbers, other deviations
    assert torch.allclose(factor, torch.full_like(factor, (5 / 4) ** 0.5))
    assert torch.equal(before["backbone.conv1.weight"], other["backbone.conv1.weight"])
    printed = succeed(*start, "--exp_path", tmp_path / "same")
    assert "head" not in printed
    same = read_checkpoint(next(only_run(tmp_path / "same").glob("checkpoint_[0-9]*")))
    assert same.class_names[1] == "green square" and torch.equal(before["fc_conv.weight"], same.state["fc_conv.weight"])


@pytest.mark.parametrize("option", [["--depth", 8], ["--mask_path", "unet"], ["--connection", "own:thing"],
                                    ["--init", "fan_in"]])
def test_ft_model_refuses_another_network_and_without_the_option_it_works(runs, data, tmp_path, option):
    start = [TRAIN, "--ft_model", runs["train"] / "checkpoint_6.pth.tar", "--gpu", -1, "--crop_size", 64, "--n_worker",
             0, *folders(data), "--max_epoch", 1, "--exp_path", tmp_path]
    message = refuse(*start, *option)
    assert "leave" in message and f"({option[0]})" in message
    assert "done" in succeed(*start)


def test_labels_beyond_the_classes_lead_to_a_new_head_and_not_in_a_circle(runs, data, tmp_path):
    shutil.copytree(data / "gt", tmp_path / "gt")
    for name in ("n0", "n5"):
        Image.new("L", (76, 70), 4).save(tmp_path / "gt" / f"{name}.png")
    checkpoint = runs["train"] / "checkpoint_6.pth.tar"
    options = ["--gt_path", tmp_path / "gt", "--gpu", -1]
    message = refuse(EVAL, "--pretrained_model", checkpoint, *folders(data, False), *options)
    command = re.search(r"train_sparse_mask.py --ft_model \S+ --n_class N", message)[0]
    *command, _ = shlex.split(command)
    rest = [*folders(data), *options, "--crop_size", 64, "--max_epoch", 1, "--n_worker", 0, "--exp_path", tmp_path]
    message = call(*command[:-1], *rest).text
    assert "number of classes" in message and "(--n_class, --label_map)" in message
    printed = succeed(*command, 5, *rest)
    assert "for 5" in printed and "done" in printed


RUN = ["--max_epoch", 1, "--exp_path", "RUNS"]
NEW = [TRAIN, *TINY, "LISTS", *RUN]
EVALUATE = [EVAL, "EVAL_LISTS", "--gpu", -1, "--pretrained_model", "TRAINED"]


@pytest.mark.parametrize("wrong, words, right", [
    ([TRAIN, "--resume", "RELEASED"], "start a new run from its network instead (--ft_model)",
     [TRAIN, "--ft_model", "RELEASED", "--crop_size", 64, "--n_worker", 0, "--gpu", -1, "LISTS", *RUN]),
    ([TRAIN, "--resume", "FIRST"], "checkpoint_6.pth.tar: resume that one", [TRAIN, "--resume", "TRAINED"]),
    ([*NEW, "--search", "--ft_model", "TRAINED"], "leave out one or the other", [*NEW, "--ft_model", "TRAINED"]),
    ([*NEW, "--search", "--mask_path", "fcn"], "leave out one or the other", [*NEW, "--mask_path", "fcn"]),
    (NEW, "or --mask_path FILE to train one", [*NEW, "--mask_path", "fcn"]),
    ([*NEW, "--ft_model"], "--ft_model FILE", [*NEW, "--ft_model", "TRAINED"]),
    ([*EVALUATE, "--n_class", 4], "leave the option out", EVALUATE),
    ([*EVALUATE, "--mask_path", "unet"], "leave it out", EVALUATE),
    ([*EVALUATE, "--depth", 8], "leave the option out", [*EVALUATE, "--batch_size", 1, "--type", "bfloat16"]),
    (["predict.py", "IMAGES", "--checkpoint", "TRAINED", "--gpu", -1, "--crop_size", "64", "IMAGES"],
     "file names before the options",
     ["predict.py", "IMAGES", "--checkpoint", "TRAINED", "--gpu", -1, "--out", "OUT"])])
def test_the_advice_of_a_refusal_can_be_followed(folder, data, tmp_path, wrong, words, right):
    torch.save({"iter": 7, "state_dict": content_of(folder, 6)["state_dict"]}, tmp_path / "released.pth.tar")
    places = {"RELEASED": [tmp_path / "released.pth.tar"], "FIRST": [folder / "checkpoint_3.pth.tar"],
              "TRAINED": [folder / "checkpoint_6.pth.tar"], "RUNS": [tmp_path / "runs"], "LISTS": folders(data),
              "EVAL_LISTS": folders(data, False), "IMAGES": [data / "img" / "n5.jpg"], "OUT": [tmp_path / "out"]}
    wrong, right = ([place for word in command for place in places.get(word, [word])] for command in (wrong, right))
    assert words in refuse(*wrong)
    succeed(*right)


def test_no_evaluation(data, tmp_path):
    printed = succeed(TRAIN, "--mask_path", "fcn", *TINY, *folders(data), "--eval_list", "none", "--max_epoch", 1,
                      "--exp_path", tmp_path)
    folder = only_run(tmp_path)
    assert "there is no evaluation: the last checkpoint is the result" in printed and "val mIoU" not in printed
    assert {p.name for p in folder.glob("*.pth.tar")} == {"checkpoint_3.pth.tar"}
    command, = advised(printed)
    assert "none" not in command
    printed = succeed(*[data / "val.txt" if word == "LIST" else word for word in command], "--gpu", -1)
    assert "mIoU" in printed
    assert "needs images" in refuse(*["none" if word == "LIST" else word for word in command], "--gpu", -1)
    printed = succeed(TRAIN, "--resume", folder, "--eval_list", data / "val.txt")
    assert "epoch 1, iteration 3: val mIoU" in printed and (folder / "checkpoint_best.pth.tar").exists()
    assert advised(printed)[0][-1] == str(data / "val.txt")


def test_a_search_without_evaluation(data, tmp_path):
    printed = succeed(TRAIN, "--search", *TINY, *folders(data), "--eval_list", "none", "--max_epoch", 1, "--exp_path",
                      tmp_path)
    command, = advised(printed)
    assert command[0] == "prune.py" and (only_run(tmp_path) / "checkpoint_3.pth.tar").exists()


def test_crops_that_are_not_square(data, tmp_path, monkeypatch):
    shapes = set()
    original = engine.train_step

    def train_step(network, image, *arguments):
        shapes.add(tuple(image.shape[2:]))
        return original(network, image, *arguments)
    monkeypatch.setattr(engine, "train_step", train_step)
    succeed(TRAIN, "--mask_path", "fcn", *TINY, *folders(data), "--crop_size", 48, 96, "--max_epoch", 1, "--exp_path",
            tmp_path)
    folder = only_run(tmp_path)
    assert shapes == {(48, 96)}
    assert json.loads((folder / "settings.json").read_text())["crop_size"] == [48, 96]
    checkpoint = folder / "checkpoint_3.pth.tar"
    evaluation = [EVAL, "--pretrained_model", checkpoint, *folders(data, False), "--gpu", -1]
    assert succeed(*evaluation) == succeed(*evaluation, "--crop_size", 48, 96)
    prediction = ["predict.py", data / "img" / "n5.jpg", "--checkpoint", checkpoint, "--gpu", -1, "--out",
                  tmp_path / "out"]
    for size in ([], ["--crop_size", 128, 40], ["--crop_size", 80]):
        succeed(*prediction, *size)
    assert "one (a square) or two" in call(*evaluation, "--crop_size", 1, 2, 3).text
    assert "--crop_size is 8" in refuse(*evaluation, "--crop_size", 64, 8)
    assert "changed: crop_size [48, 96] -> 64" in succeed(TRAIN, "--resume", folder, "--crop_size", 64, 64,
                                                          "--max_epoch", 2)
    content = content_of(folder, 6)
    content["settings"]["crop_size"] = [64, "x"]
    torch.save(content, folder / "checkpoint_6.pth.tar")
    assert "setting crop_size is [64, 'x']" in refuse(TRAIN, "--resume", folder)


def test_a_damaged_length_is_not_resumed(folder):
    content = content_of(folder, 6)
    for change in ({"shift": "x"}, {"shift": 1}, {"shift": -6}):
        torch.save({**content, **change}, folder / "checkpoint_6.pth.tar")
        assert "do not fit" in refuse(TRAIN, "--resume", folder)
