"""Wrong input of every kind, to every command, and the sentence that each gives: a table for `make torture` and a test.

Most are tried in this process, for the speed of it; test_commands.py shows that a command turns an InputError into one
line and exit code 2.
"""

import contextlib
import importlib
import io
import os
import shutil
import tarfile
from typing import NamedTuple

import numpy as np
import scipy.io
import torch
from conftest import TINY, folders, tiny_data
from PIL import Image

from models import FullyDenseNetwork, SparseMask, connectivity
from utils.errors import InputError, given_options

TRAIN, PRUNE, EVAL, PREDICT = "train_sparse_mask.py", "prune.py", "eval_sparse_mask.py", "predict.py"
DRAW, MEASURE, EXPORT = "draw.py", "measure.py", "export.py"
MAT, LABELS, PREPARE = "VOC12/convert_mat_to_png.py", "VOC12/convert_labels.py", "VOC12/prepare.py"


class Case(NamedTuple):
    """`what` is wrong with input of this kind; the command; words that its sentence must hold."""

    kind: str
    what: str
    command: list
    words: list


class Outcome(NamedTuple):
    """code: of the exit, 0 for input that is harmless. said: the sentence, or the lines that name each failed file."""

    code: int
    said: str


class MakesFile:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def try_out(case):
    """Runs a command with bad input. Returns its Outcome; a bug of ours is raised, as a traceback would show it."""
    script, *options = map(str, case.command)
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    screen = io.StringIO()
    with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
        parser = module.build_parser()
        try:
            args = parser.parse_args(options)
            args.given = given_options(parser, options)
            code = module.main(args) or 0
        except InputError as error:
            return Outcome(2, str(error))
        except SystemExit as exit:  # argparse
            return Outcome(exit.code, screen.getvalue().strip().splitlines()[-1].partition("error: ")[2])
    lines = [line.rpartition("\r")[2].strip() for line in screen.getvalue().splitlines()]
    return Outcome(code, " / ".join(line for line in lines if line and "%|" not in line))


def make_files(root):
    """Everything that the cases read, in a folder. Returns (data folder, search checkpoint, trained checkpoint)."""
    data = root / "data"
    data.mkdir()
    tiny_data(data)
    torch.manual_seed(0)
    search, train = root / "checkpoint_6.pth.tar", root / "trained.pth.tar"
    network = FullyDenseNetwork(depth=4, num_classes=3)
    torch.save({"iter": 6, "model": {"backbone": "mobilenet_v2"}, "state_dict": network.state_dict()}, search)
    state = network.state_dict()
    torch.save(
        {"state_dict": {**state, "decoders.Decoders_8._logit_": torch.full((9, 2), -20.0)}}, root / "weak.pth.tar"
    )
    network = SparseMask(connectivity.fcn(), depth=4, num_classes=3)
    content = {"iter": 6, "model": {"backbone": "mobilenet_v2"}, "state_dict": network.state_dict(), "settings": {}}
    torch.save(content, train)
    one_lacks = dict(content["state_dict"])
    one_lacks.pop("backbone.conv1.weight")
    torch.save({"state_dict": one_lacks}, root / "lacks.pth.tar")
    torch.save(
        {"state_dict": {**content["state_dict"], "backbone.conv1.weight": torch.zeros(2, 2)}}, root / "shape.pth"
    )
    torch.save({"state_dict": {"features": torch.zeros(3)}}, root / "nothing.pth")
    torch.save([1, 2], root / "list.pth")
    torch.save({"state_dict": {}, "x": MakesFile(root / "made_by_checkpoint")}, root / "hostile.pth.tar")
    torch.save({**content, "model": {"backbone": "os:getcwd"}}, root / "imports.pth.tar")
    (root / "cut.pth.tar").write_bytes(train.read_bytes()[:5000])
    (root / "empty").write_text("")
    (root / "text.txt").write_text("this is no such file\n")
    (root / "text.pth.tar").write_text("this is no such file\n")
    (root / "folder").mkdir()

    np.save(root / "flat.npy", np.zeros((9, 9), bool))
    np.save(root / "float.npy", np.full((9, 9, 2), 0.5))
    np.save(root / "object.npy", np.array([MakesFile(root / "made_by_mask")], object), allow_pickle=True)
    np.save(root / "none.npy", np.zeros((9, 9, 2), bool))
    np.save(root / "five.npy", connectivity.fcn()[:5, :5])
    dangling = connectivity.fcn()
    dangling[8, 4, 1] = True
    np.save(root / "dangling.npy", dangling)
    finer = connectivity.fcn()
    finer[3, 6, 0] = True
    np.save(root / "finer.npy", finer)
    (root / "cut.npy").write_bytes((root / "dangling.npy").read_bytes()[:150])
    np.savez(root / "zip.npz", connectivity.fcn())
    (root / "names.txt").write_text("D[8] E[0] E[19]\n")

    for name, content in {
        "empty.txt": "",
        "blank.txt": "\n  \n\n",
        "unknown.txt": "n5\nmissing\n",
        "up.txt": "../n5\n",
        "absolute.txt": "/etc/passwd\n",
        "drive.txt": "C:\\n5\n",
        "control.txt": "n5\x07\n",
    }.items():
        (root / name).write_text(content)
    (root / "binary.txt").write_bytes(bytes(range(128, 256)))
    (root / "harmless.txt").write_bytes("\ufeffn5\r\n\r\n  n6  \r\nn5\r\n".encode())
    (root / "two_names.txt").write_text("a\nb\n")
    return data, search, train


def broken_images(root, data):
    """(what, words, function(path of the image) that breaks it) of one image of the list, n5."""
    whole = (data / "img/n5.jpg").read_bytes()

    def bomb(path):  # a PNG that says it is of 20,000 x 20,000 pixels
        Image.new("1", (20000, 20000)).save(path, format="PNG")

    return [
        ("cut short", ["n5.jpg", "cannot be read"], lambda path: path.write_bytes(whole[: len(whole) // 2])),
        ("zero bytes", ["n5.jpg", "cannot be read"], lambda path: path.write_bytes(b"")),
        ("text named .jpg", ["n5.jpg", "cannot be read"], lambda path: path.write_text("no image")),
        ("20,000 x 20,000 pixels", ["n5.jpg", "cannot be read", "exceeds"], bomb),
        ("32-bit floats", ["n5.jpg", "32 bits"], lambda path: Image.new("F", (76, 70)).save(path, format="TIFF")),
        (
            "another size than its label",
            ["n5.jpg", "60x50", "76x70"],
            lambda path: Image.new("RGB", (60, 50)).save(path),
        ),
        ("missing", ["n5", "no image of that name"], lambda path: path.unlink()),
        ("a folder named .jpg", ["n5", "no image of that name"], lambda path: (path.unlink(), path.mkdir())),
    ]


def broken_labels():
    """As broken_images, of a label."""

    def save(image):
        return lambda path: image.save(path)

    return [
        ("cut short", ["n5.png", "cannot be read"], lambda path: path.write_bytes(path.read_bytes()[:60])),
        ("zero bytes", ["n5.png", "cannot be read"], lambda path: path.write_bytes(b"")),
        ("RGB", ["n5.png", "RGB", "convert_labels"], save(Image.new("RGB", (76, 70)))),
        ("16 bits", ["n5.png", "I;16"], save(Image.fromarray(np.zeros((70, 76), np.uint16)))),
        ("another size than its image", ["n5.png", "60x50"], save(Image.new("L", (60, 50)))),
        ("a class out of range", ["n5.png", "value 3", "row 0"], save(Image.new("L", (76, 70), 3))),
        ("missing", ["n5", "does not exist"], lambda path: path.unlink()),
    ]


def broken_mats(root):
    """(what, words, folder benchmark_RELEASE with one wrong .mat)."""

    def struct(labels):
        return {"GTcls": {"Segmentation": labels}}

    def save(content, **options):
        return lambda path: scipy.io.savemat(path, content, **options)

    good = np.zeros((4, 5), np.uint8)
    kinds = [
        ("no GTcls", ["holds no GTcls"], save({"other": good})),
        ("GTcls is no struct", ["no struct"], save({"GTcls": good})),
        ("v7.3 (HDF5)", ["7.3"], lambda path: path.write_bytes(b"MATLAB 7.3 MAT-file" + bytes(500))),
        (
            "cut short",
            ["no whole MATLAB 5"],
            lambda path: (save(struct(good))(path), path.write_bytes(path.read_bytes()[:200])),
        ),
        ("zero bytes", ["no whole MATLAB 5"], lambda path: path.write_bytes(b"")),
        ("text named .mat", ["no whole MATLAB 5"], lambda path: path.write_text("no labels")),
        ("a class out of range", ["holds 77"], save(struct(good + np.uint8(77)))),
        ("half a class", ["holds 0.5"], save(struct(good + 0.5))),
        ("one dimension too many", ["shape (2, 3, 4)"], save(struct(np.zeros((2, 3, 4))))),
    ]
    for number, (what, words, write) in enumerate(kinds):
        folder = root / f"sbd{number}"
        (folder / "dataset/cls").mkdir(parents=True)
        write(folder / "dataset/cls/2008_000001.mat")
        yield what, words, folder


def archive(root, name, member):
    """ROOT of prepare.py with an archive that would write outside of it."""
    folder = root / name
    folder.mkdir()
    (folder / "VOCdevkit/VOC2012").mkdir(parents=True)
    with tarfile.open(folder / "benchmark.tgz", "w:gz") as tar:
        tar.addfile(member, io.BytesIO(b"x" * member.size))
    return folder


def member(name, kind=tarfile.REGTYPE, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, 1 if kind == tarfile.REGTYPE else 0
    return info


def make_cases(root):
    """Makes the files in `root`, an empty folder; returns the list of Cases."""
    data, search, train = make_files(root)
    lists = folders(data)
    mask = ["--mask_path", "fcn"]
    new = [TRAIN, *mask, *TINY, *lists, "--exp_path", root / "runs"]
    evaluation = [EVAL, "--pretrained_model", train, *folders(data, False), "--gpu", -1, "--n_worker", 0]
    prediction = [PREDICT, data / "img/n5.jpg", "--checkpoint", train, "--gpu", -1, "--out", root / "predictions"]
    cases = []

    def add(kind, what, command, *words):
        cases.append(Case(kind, what, command, list(words)))

    for kind, broken, sub in (("image", broken_images(root, data), "img"), ("label", broken_labels(), "gt")):
        for number, (what, words, spoil) in enumerate(broken):
            copy = root / f"{sub}{number}"
            shutil.copytree(data / sub, copy)
            spoil(copy / f"n5{'.jpg' if sub == 'img' else '.png'}")
            option = "--im_path" if sub == "img" else "--gt_path"
            add(kind, what, [*evaluation, option, copy], *words)
            if kind == "image" and number < 3:
                add(kind, f"{what}, of predict.py", [PREDICT, copy / "n5.jpg", *prediction[2:]], *words)
    add("image", "none at the path", [PREDICT, root / "nothing", *prediction[2:]], "names no image")
    add("image", "a folder without images", [PREDICT, root / "folder", *prediction[2:]], "image")
    add("image", "the folder missing", [*evaluation, "--im_path", root / "nowhere"], "nowhere", "does not exist")
    add("label", "the folder is a file", [*evaluation, "--gt_path", root / "empty"], "folder of labels")
    add("label", "a class beyond --n_class", [*new, "--n_class", 2], "value 2", "--n_class")

    for what, file, word in (
        ("empty", "empty.txt", "is empty"),
        ("blank lines alone", "blank.txt", "is empty"),
        ("a name without image", "unknown.txt", "'missing'"),
        ("a name that leads out", "up.txt", "leads out"),
        ("an absolute name", "absolute.txt", "leads out"),
        ("a drive letter", "drive.txt", "leads out"),
        ("a control character", "control.txt", "not a file name"),
        ("not UTF-8", "binary.txt", "not UTF-8"),
        ("missing", "nowhere.txt", "does not exist"),
        ("a folder", "folder", "is a folder"),
        ("a name too long", "a" * 300, "cannot be reached"),
    ):
        add("list", what, [*evaluation, "--eval_list", root / file], word)
    add("list", "of training, a name without image", [*new, "--training_list", root / "unknown.txt"], "'missing'")
    add("list", "too few class names", [*new, "--class_names", root / "two_names.txt"], "2 class names", "3 classes")
    add("list", "class names not UTF-8", [*new, "--class_names", root / "binary.txt"], "cannot be read as text")
    add("list", "of convert_labels.py, empty", [LABELS, data / "gt", root / "empty.txt", root / "out"], "is empty")

    for what, words, folder in broken_mats(root):
        add(".mat", what, [MAT, "--sbd_path", folder, "--workers", 1], "2008_000001.mat", *words)
    add(".mat", "none in the folder", [MAT, "--sbd_path", root / "folder"], "does not exist", "benchmark_RELEASE")
    Image.new("RGB", (4, 4), (1, 2, 3)).save(data / "gt/colour.png")
    (root / "colour.txt").write_text("colour\n")
    add(
        "label",
        "a colour that is none of VOC's",
        [LABELS, data / "gt", root / "colour.txt", root / "out", "--workers", 1],
        "(1, 2, 3)",
        "none of VOC's 22",
    )
    add(
        "label",
        "no PNG to convert",
        [LABELS, data / "gt", root / "unknown.txt", root / "out", "--workers", 1],
        "no such file",
    )
    add("label", "source and destination the same", [LABELS, data / "gt", data / "val.txt", data / "gt"], "same folder")
    add(
        "archive",
        "missing",
        [PREPARE, "--root", root / "folder", "--data", root / "voc"],
        "lacks archives",
        "--download",
    )
    add("archive", "--root missing", [PREPARE, "--root", root / "nowhere", "--data", root / "voc"], "does not exist")
    for number, (what, wrong) in enumerate(
        (
            ("a member above the folder", member("../escaped")),
            ("an absolute member", member(str(root / "escaped"))),
            ("a link out of the folder", member("benchmark_RELEASE/x", tarfile.SYMTYPE, "../../escaped")),
            ("a device", member("benchmark_RELEASE/x", tarfile.CHRTYPE)),
        )
    ):
        folder = archive(root, f"archive{number}", wrong)
        add("archive", what, [PREPARE, "--root", folder, "--data", root / "voc"], "benchmark.tgz")
    cut = archive(root, "archive_cut", member("benchmark_RELEASE/a"))
    (cut / "benchmark.tgz").write_bytes((cut / "benchmark.tgz").read_bytes()[:60])
    add("archive", "cut short", [PREPARE, "--root", cut, "--data", root / "voc"], "benchmark.tgz")
    add("archive", "an address without --download", [PREPARE, "--root", root, "--sbd_url", "http://x"], "--download")

    for what, file, *words in (
        ("wrong shape", "flat.npy", "(9, 9)", "(L, L, 2)"),
        ("numbers between 0 and 1", "float.npy", "float.npy"),
        ("an object array (hostile)", "object.npy", "object.npy"),
        ("no connection", "none.npy", "no input"),
        ("five stages", "five.npy", "5"),
        ("a stage that is not there is read", "dangling.npy", "stage 8 reads D[3]"),
        ("a finer source", "finer.npy", "stage 3"),
        ("cut short", "cut.npy", "cut.npy"),
        ("a zip archive", "zip.npz", "zip.npz"),
        ("text without connections", "text.txt", "text.txt"),
        ("text with a tap that does not exist", "names.txt", "names.txt"),
        ("missing", "nowhere.npy", "does not exist"),
        ("a folder", "folder", "folder"),
        ("zero bytes", "empty", "empty"),
    ):
        add("mask", what, [TRAIN, "--mask_path", root / file, *new[3:]], *words)
    add("mask", "not the checkpoint's", [*evaluation, "--mask_path", "unet"], "not the connectivity")
    add("mask", "wrong shape, to draw", [DRAW, root / "flat.npy"], "(L, L, 2)")
    add("mask", "a name that is none", [MEASURE, "nonsense"], "nonsense", "does not exist")

    for what, file, *words in (
        ("cut short", "cut.pth.tar", "cannot be read", "cut short"),
        ("zero bytes", "empty", "cannot be read"),
        ("text", "text.pth.tar", "cannot be read"),
        ("a pickle that runs code (hostile)", "hostile.pth.tar", "could run code"),
        ("imports an encoder (hostile)", "imports.pth.tar", "import", "--backbone_name"),
        ("of no network", "nothing.pth", "no checkpoint"),
        ("a list", "list.pth", "no checkpoint"),
        ("lacks a tensor", "lacks.pth.tar", "lacks 1 tensors", "conv1.weight"),
        ("a tensor of another shape", "shape.pth", "in another shape"),
        ("of a search", "checkpoint_6.pth.tar", "is of a search"),
        ("missing", "nowhere", "does not exist"),
        ("a folder", "folder", "folder"),
    ):
        add("checkpoint", what, [EVAL, "--pretrained_model", root / file, *evaluation[3:]], *words)
    add("checkpoint", "of training, to prune", [PRUNE, "--checkpoint", train], "is of training")
    add(
        "checkpoint",
        "strengths of which nothing is left",
        [PRUNE, "--checkpoint", root / "weak.pth.tar"],
        "nothing is left",
    )
    add("checkpoint", "other classes", [*evaluation, "--n_class", 4], "classes 3", "4 was given")
    add("checkpoint", "another depth", [PRUNE, "--checkpoint", search, "--depth", 8], "depth 4", "8 was given")
    add("checkpoint", "of a search, to start from", [TRAIN, "--ft_model", search, *TINY, *lists], "is of a search")
    add("checkpoint", "nothing to resume", [TRAIN, "--resume", root / "folder"], "no checkpoint_ITER")
    add("checkpoint", "without what resuming needs", [TRAIN, "--resume", train], "cannot be resumed", "optimizer")
    add("checkpoint", "cut short, to draw", [DRAW, root / "cut.pth.tar"], "cannot be read")
    add("checkpoint", "of a search, to predict", [*prediction[:2], "--checkpoint", search], "is of a search")
    add(
        "checkpoint",
        "of a search, to export",
        [EXPORT, "--checkpoint", search, "--out", root / "n.onnx"],
        "is of a search",
    )
    add(
        "checkpoint",
        "encoder weights of nothing",
        [*new, "--pretrained_model", root / "nothing.pth"],
        "none of the 1 tensors",
    )
    add("checkpoint", "encoder weights of zero bytes", [*new, "--pretrained_model", root / "empty"], "cannot be read")

    words = {"--n_class": "class", "--backbone_name": "backbone"}
    for flag, values in (
        ("--n_class", (0, -3, "many", 256)),
        ("--batch_size", (0, -1)),
        ("--max_epoch", (0,)),
        ("--depth", (0,)),
        ("--log_interval", (0,)),
        ("--eval_interval", (0,)),
        ("--save_interval", (-1,)),
        ("--lr", ("nan", -1, "inf", "fast")),
        ("--decay", (-1,)),
        ("--momentum", ("nan",)),
        ("--gamma", ("nan",)),
        ("--sparse", (-1,)),
        ("--crop_size", (0, 31, 10**9)),
        ("--n_worker", (-1,)),
        ("--seed", (-1, 2**64)),
        ("--bn_momentum", (0, 2)),
        ("--strength_warmup", (1, -1)),
        ("--beta_end", (0.5, "inf")),
        ("--type", ("int8",)),
        ("--gpu", (-2,)),
        ("--backbone_name", ("vgg", "torch.nn:Linear", "no.such:Thing")),
        ("--strengths", ("soft",)),
        ("--no_such_flag", (1,)),
    ):
        for value in values:
            add("flag", f"{flag} {value}", [*new, flag, value], words.get(flag, flag.strip("-")))
    add("flag", "neither --search nor --mask_path", [TRAIN, *TINY, *lists], "--search", "--mask_path")
    add("flag", "--search and --mask_path", [*new, "--search"], "--mask_path")
    add("flag", "--ft_model without a file", [TRAIN, *TINY, *lists, "--ft_model"], "--ft_model")
    add("flag", "--exp_path a file", [*new, "--exp_path", root / "empty"], "empty")
    for value in (0, "nan", 1e9):
        add("flag", f"--scales {value}", [*evaluation, "--scales", value], "--scales")
    for command, flag, value in (
        (evaluation, "--batch_size", 0),
        (evaluation, "--crop_size", 1),
        (evaluation, "--n_worker", -1),
        (prediction, "--n_worker", -1),
        (prediction, "--scales", 0),
        (prediction, "--crop_size", 0),
        ([PRUNE, "--checkpoint", search], "--thres", 1.5),
        ([PRUNE, "--checkpoint", search], "--thres", "nan"),
        ([DRAW, "unet"], "--thres", 2),
        ([DRAW, "unet"], "--depth", 0),
        ([MEASURE, "unet"], "--runs", 0),
        ([MEASURE, "unet"], "--batch_size", 0),
        ([MEASURE, "unet"], "--depth", -1),
        ([MAT, "--sbd_path", root], "--workers", 0),
        ([PREPARE, "--root", root], "--trainaug_count", "all"),
    ):
        add("flag", f"{command[0]} {flag} {value}", [*command, flag, value], flag.strip("-"))
    add("flag", "measure.py --size 8 64", [MEASURE, "unet", "--size", 8, 64], "--size has 8")
    add(
        "flag", "export.py --out n.tflite", [EXPORT, "--checkpoint", train, "--out", root / "n.tflite"], ".onnx or .pt2"
    )
    add("flag", "predict.py --out a file", [*prediction[:-1], root / "empty"], "cannot write")
    add(
        "flag",
        "predict.py --out the images' folder",
        [PREDICT, data / "gt/n5.png", "--checkpoint", train, "--gpu", -1, "--out", data / "gt"],
        "another --out",
    )
    add("flag", "draw.py --out a file", [DRAW, "unet", "--out", root / "empty"], "cannot write")
    add(
        "flag",
        "export.py --out below a file",
        [EXPORT, "--checkpoint", train, "--out", root / "empty/n.pt2"],
        "cannot write",
    )
    return cases


def harmless(root):
    """(what, command): odd input that simply works, in the `root` of make_cases."""
    data, train = root / "data", root / "trained.pth.tar"
    images = root / "odd"
    images.mkdir()
    Image.new("CMYK", (76, 70)).save(images / "n5.jpg")
    Image.fromarray(np.zeros((70, 76), np.uint16)).save(images / "n6.png")
    Image.new("L", (1, 1)).save(root / "dot.png")
    Image.new("LA", (5, 3)).save(root / "grey_alpha.png")
    evaluation = [EVAL, "--pretrained_model", train, *folders(data, False), "--gpu", -1, "--n_worker", 0]
    prediction = [
        PREDICT,
        root / "dot.png",
        root / "grey_alpha.png",
        "--checkpoint",
        train,
        "--gpu",
        -1,
        "--out",
        root / "predictions",
    ]
    return [
        ("a list with BOM, CRLF, blank lines and a name twice", [*evaluation, "--eval_list", root / "harmless.txt"]),
        ("CMYK and 16-bit images", [*evaluation, "--im_path", images]),
        ("images of 1x1 and 5x3", prediction),
    ]


def wrong(case, outcome):
    """What is wrong with the outcome of bad input, or an empty string."""
    if outcome.code not in (1, 2):
        return f"exit code {outcome.code}"
    if outcome.code == 2 and "\n" in outcome.said:
        return "more than one line"
    return ", ".join(f"no {word!r}" for word in case.words if word not in outcome.said)


def made_by_hostile_files(root):
    """The files that exist if a hostile file was obeyed, of those that make_cases laid out."""
    return [
        path
        for path in (root / "made_by_checkpoint", root / "made_by_mask", root / "escaped", root.parent / "escaped")
        if path.exists()
    ]


def print_table(root):
    """Tries all cases in the empty folder `root` and prints each with its sentence. Raises AssertionError."""
    counts = {}
    print("| kind | what is wrong | exit code | sentence |\n|---|---|---|---|")
    for case in make_cases(root):
        outcome = try_out(case)
        assert not wrong(case, outcome), (case, outcome)
        print(f"| {case.kind} | {case.what} | {outcome.code} | {outcome.said.replace(f'{root}/', '')} |")
        counts[case.kind] = counts.get(case.kind, 0) + 1
    for what, command in harmless(root):
        assert try_out(Case("", what, command, [])).code == 0, what
        print(f"| harmless | {what} | 0 | (it works) |")
    assert not made_by_hostile_files(root)
    print(
        f"\n{sum(counts.values())} bad inputs: "
        + ", ".join(f"{n} {kind}" for kind, n in counts.items())
        + "; hostile files ran nothing, and nothing was written outside"
    )
