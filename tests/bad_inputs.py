"""Wrong input of every kind, to every command, and the sentence that each gives: a table for `make torture` and a test.

Most are tried in this process, for the speed of it; test_commands.py shows that a command turns an InputError into one
line and exit code 2.
"""
from typing import NamedTuple

from bad_files import LONG_NAME, broken_archives, broken_images, broken_labels, broken_mats, make_files
from helpers import TINY, call, folders
from odd_files import CASES, REFUSED, prepare

TRAIN, PRUNE, EVAL, PREDICT = "train_sparse_mask.py", "prune.py", "eval_sparse_mask.py", "predict.py"
DRAW, MEASURE, EXPORT = "draw.py", "measure.py", "export.py"
MAT, LABELS, PREPARE = "VOC12/convert_mat_to_png.py", "VOC12/convert_labels.py", "VOC12/prepare.py"


class Case(NamedTuple):
    """`what` is wrong with input of this kind; the command; words that its sentence must contain."""
    kind: str
    what: str
    command: list
    words: list


class Lab:
    """A folder of broken files (bad_files.py), and commands that would succeed: each case spoils one thing of one."""

    def __init__(self, root):
        self.root, self.data = root, root / "data"
        self.search, self.train = root / "checkpoint_6.pth.tar", root / "trained.pth.tar"
        self.lists = folders(self.data)
        self.new = [TRAIN, *TINY, *self.lists, "--exp_path", root / "runs", "--mask_path", "fcn"]
        self.resume = [TRAIN, "--resume"]
        self.evaluation = [EVAL, *folders(self.data, False), "--gpu", -1, "--n_worker", 0, "--pretrained_model",
                           self.train]
        self.prediction = [PREDICT, "--checkpoint", self.train, "--gpu", -1, "--out", root / "predictions"]
        self.export = [EXPORT, "--checkpoint", self.train, "--out"]
        self.prune = [PRUNE, "--checkpoint"]
        self.labels = [LABELS, "--workers", 1, self.data / "gt"]
        self.prepare = [PREPARE, "--data", root / "voc", "--root"]


def list_all(root):
    """{"KIND: WHAT": Case} of the files that make_files(root) makes. Makes none, so any root will do for the names."""
    lab = Lab(root)
    kinds = {"image": image_cases, "label": label_cases, "list": list_cases, ".mat": mat_cases,
             "archive": archive_cases, "mask": mask_cases, "checkpoint": checkpoint_cases, "exported": exported_cases,
             "flag": flag_cases}
    cases = [Case(kind, what, command, words) for kind, cases in kinds.items() for what, command, *words in cases(lab)]
    names = {f"{case.kind}: {case.what}": case for case in cases}
    assert len(names) == len(cases), "two cases of one name"
    return names


def image_cases(lab):
    """(what, command, words...), as in all the functions that follow."""
    for number, (what, words, _) in enumerate(broken_images()):
        folder = lab.root / f"img{number}"
        yield what, [*lab.evaluation, "--im_path", folder], *words
        if what not in ("missing", "a folder named .jpg", "another size than its label"):
            yield f"{what}, of predict.py", [*lab.prediction, folder / "n5.jpg"], *words
    yield "a name of 254 characters", [*lab.prediction, lab.root / LONG_NAME], "262 bytes", "shorter"
    yield "none at the path", [*lab.prediction, lab.root / "nothing"], "names no image"
    yield "a folder without images", [*lab.prediction, lab.root / "folder"], "image"
    yield "the folder missing", [*lab.evaluation, "--im_path", lab.root / "nowhere"], "nowhere", "does not exist"


def label_cases(lab):
    for number, (what, words, _) in enumerate(broken_labels()):
        yield what, [*lab.evaluation, "--gt_path", lab.root / f"gt{number}"], *words
    out, gt = lab.root / "out", lab.data / "gt"
    yield "the folder is a file", [*lab.evaluation, "--gt_path", lab.root / "empty"], "folder of labels"
    yield "a class beyond --n_class", [*lab.new, "--n_class", 2], "value 2", "--n_class"
    yield "a colour that is none of VOC's", [*lab.labels, lab.root / "colour.txt", out], "(1, 2, 3)", "VOC's 22"
    for what, word in (("colours.txt", "no name with a colour"), ("nowhere.txt", "does not exist"),
                       ("binary.txt", "not UTF-8"), ("empty", "has no class")):
        yield f"--colours {what}", [*lab.labels, lab.data / "val.txt", out, "--colours", lab.root / what], word
    yield "void everywhere, to train", [*lab.new, "--gt_path", lab.root / "void"], "nothing to learn", "--label_map"
    yield "no PNG to convert", [*lab.labels, lab.root / "unknown.txt", out], "no such file"
    yield "source and destination the same", [*lab.labels, lab.data / "val.txt", gt], "same folder"


def list_cases(lab):
    for what, file, word in (("empty", "empty.txt", "is empty"),
                             ("blank lines alone", "blank.txt", "is empty"),
                             ("a name without image", "unknown.txt", "'missing'"),
                             ("a name that leads out", "up.txt", "leads out"),
                             ("an absolute name", "absolute.txt", "leads out"),
                             ("a drive letter", "drive.txt", "leads out"),
                             ("a control character", "control.txt", "not a file name"),
                             ("not UTF-8", "binary.txt", "not UTF-8"),
                             ("a name of 300 characters", "long.txt", "no image of that name"),
                             ("missing", "nowhere.txt", "does not exist"),
                             ("a folder", "folder", "is a folder"),
                             ("a name too long", "a" * 300, "cannot be reached")):
        yield what, [*lab.evaluation, "--eval_list", lab.root / file], word
    yield "of training, a name without image", [*lab.new, "--training_list", lab.root / "unknown.txt"], "'missing'"
    yield "two columns, the label missing", [*lab.evaluation, "--eval_list", lab.root / "columns.txt"], "gt/n9.png"
    yield "the label has a suffix", [*lab.evaluation, "--gt_suffix", "_x.png"], "n5_x.png", "does not exist"
    yield "the image has a suffix", [*lab.evaluation, "--im_suffix", "_x.png"], "no image of that name (_x.png)"
    yield "of predict.py, a name without image", [*lab.prediction, "--list", lab.root / "unknown.txt", "--im_path",
                                                  lab.data / "img"], "'missing'"
    yield "too few class names", [*lab.new, "--class_names", lab.root / "two_names.txt"], "2 class names", "3 classes"
    yield "class names not UTF-8", [*lab.new, "--class_names", lab.root / "binary.txt"], "is not UTF-8 text"
    yield "of convert_labels.py, empty", [*lab.labels, lab.root / "empty.txt", lab.root / "out"], "is empty"


def mat_cases(lab):
    for number, (what, words, _) in enumerate(broken_mats()):
        yield what, [MAT, "--workers", 1, "--sbd_path", lab.root / f"sbd{number}"], "2008_000001.mat", *words
    yield "none in the folder", [MAT, "--sbd_path", lab.root / "folder"], "does not exist", "benchmark_RELEASE"


def archive_cases(lab):
    yield "missing", [*lab.prepare, lab.root / "folder"], "lacks archives", "--download"
    yield "--root missing", [*lab.prepare, lab.root / "nowhere"], "does not exist"
    for number, (what, _) in enumerate(broken_archives(lab.root)):
        yield what, [*lab.prepare, lab.root / f"archive{number}"], "benchmark.tgz"
    yield "an address without --download", [*lab.prepare, lab.root, "--sbd_url", "http://x"], "--download"


def mask_cases(lab):
    for what, file, *words in (("wrong shape", "flat.npy", "(9, 9)", "(L, L, 2)"),
                               ("numbers between 0 and 1", "float.npy", "float.npy"),
                               ("an object array (hostile)", "object.npy", "object.npy"),
                               ("no connection", "none.npy", "no input"),
                               ("five stages", "five.npy", "5 stages", "--mask_encoder"),
                               ("a stage that is not there is read", "dangling.npy", "stage 8 reads D[3]"),
                               ("a finer source", "finer.npy", "stage 3"),
                               ("cut short", "cut.npy", "cut.npy"),
                               ("a zip archive", "zip.npz", "zip.npz"),
                               ("text without connections", "text.txt", "text.txt"),
                               ("text with a tap that does not exist", "names.txt", "names.txt"),
                               ("missing", "nowhere.npy", "does not exist"),
                               ("a folder", "folder", "folder"),
                               ("zero bytes", "empty", "empty")):
        yield what, [*lab.new, "--mask_path", lab.root / file], *words
    yield "not the checkpoint's", [*lab.evaluation, "--mask_path", "unet"], "not the connectivity"
    yield "wrong shape, to draw", [DRAW, lab.root / "flat.npy"], "(L, L, 2)"
    for task, script in (("measure", [MEASURE]), ("draw", [DRAW]), ("train", [*lab.new, "--mask_path"])):
        yield f"a name that is none, to {task}", [*script, "hypercolum"], "hypercolum", "known are", "hypercolumn"


def checkpoint_cases(lab):
    for what, file, *words in (("cut short", "cut.pth.tar", "cannot be read", "cut short"),
                               ("zero bytes", "empty", "cannot be read"),
                               ("a bit flipped", "flipped.pth.tar", "cannot be read", "damaged"),
                               ("text", "text.pth.tar", "cannot be read"),
                               ("a pickle that runs code (hostile)", "hostile.pth.tar", "could run code"),
                               ("imports an encoder (hostile)", "imports.pth.tar", "import", "--backbone_name"),
                               ("of no network", "nothing.pth", "no checkpoint"),
                               ("a list", "list.pth", "no checkpoint"),
                               ("lacks a tensor", "lacks.pth.tar", "lacks 1 tensors", "conv1.weight"),
                               ("a tensor of another shape", "shape.pth", "in another shape"),
                               ("NaN weights", "nan.pth", "NaN", "conv1.weight"),
                               ("integers for weights", "integers.pth", "int64", "conv1.weight"),
                               ("a sparse tensor", "sparse.pth", "sparse", "conv1.weight"),
                               ("of a search", "checkpoint_6.pth.tar", "is of a search"),
                               ("missing", "nowhere", "does not exist"),
                               ("a folder", "folder", "folder")):
        yield what, [*lab.evaluation, "--pretrained_model", lab.root / file], *words
    image = lab.data / "img/n5.jpg"
    yield "of training, to prune", [*lab.prune, lab.train], "is of a training"
    yield "strengths of which nothing is left", [*lab.prune, lab.root / "weak.pth.tar"], "nothing is left"
    yield "other classes", [*lab.evaluation, "--n_class", 4], "classes 3", "4 was given"
    yield "another depth", [*lab.prune, lab.search, "--depth", 8], "depth 4", "8 was given"
    yield "of a search, to start from", [TRAIN, "--ft_model", lab.search, *TINY, *lab.lists], "is of a search"
    yield "nothing to resume", [*lab.resume, lab.root / "folder"], "no checkpoint_ITER"
    yield "without what resuming needs", [*lab.resume, lab.train], "cannot be resumed", "optimizer"
    yield "cut short, to draw", [DRAW, lab.root / "cut.pth.tar"], "cannot be read"
    yield "of a search, to predict", [*lab.prediction, image, "--checkpoint", lab.search], "is of a search"
    yield "of a search, to export", [*lab.export, lab.root / "n.onnx", "--checkpoint", lab.search], "is of a search"
    encoder = [*lab.new, "--pretrained_model"]
    yield "encoder weights of nothing", [*encoder, lab.root / "nothing.pth"], "none of the 1 tensors"
    yield "encoder weights of zero bytes", [*encoder, lab.root / "empty"], "cannot be read"


def exported_cases(lab):
    network, root = [*lab.evaluation, "--pretrained_model"], lab.root
    yield "ONNX of zero bytes", [*network, root / "empty.onnx"], "ONNX"
    yield "ONNX, missing", [*lab.prediction, lab.data / "img/n5.jpg", "--checkpoint", root / "no.onnx"], "no.onnx"
    yield "torch.export's", [MEASURE, root / "empty.pt2"], "can run code"
    yield "ONNX, to prune", [*lab.prune, root / "empty.onnx"], "is an exported network"
    yield "torch.export's, to evaluate", [*network, root / "empty.pt2"], "can run code"
    yield "a folder with another config", [*network, root / "bert"], "config.json", "no 'backbone'"
    yield "a folder with a broken config", [*network, root / "broken"], "config.json", "cannot be read"
    out = [*lab.export, root / "n.onnx"]
    images = ["--int8", "--im_path", lab.data / "img", "--calibration_list"]
    yield "an opset of long ago", [*out, "--opset", 9], "opset is 9"
    yield "int8 without images", [*out, "--int8"], "--calibration_list and --im_path"
    yield "int8 from one image", [*out, *images, root / "one.txt"], "has 1 image"
    yield "int8 from a list of nothing", [*out, *images, root / "nowhere.txt"], "nowhere.txt"
    yield "int8 in a folder", [*lab.export, root / "network", *images, lab.data / "val.txt"], "--int8 is for .onnx"
    yield "a folder that is a file", [*lab.export, root / "empty"], "is a file"
    yield "--engine onnx in bfloat16", [*lab.evaluation, "--engine", "onnx", "--type", "bfloat16"], "--type is bfloat16"


def flag_cases(lab):
    words = {"--n_class": "class", "--backbone_name": "backbone", "--label_map": "label map",
             "--class_weights": "weight"}
    for flag, *values in (("--n_class", 0, -3, "many", 256), ("--batch_size", 0, -1), ("--max_epoch", 0, 10 ** 27),
                          ("--depth", 0, 10 ** 6), ("--log_interval", 0), ("--eval_interval", 0),
                          ("--save_interval", -1), ("--lr", "nan", -1, "inf", "fast"), ("--decay", -1),
                          ("--momentum", "nan"), ("--gamma", "nan"), ("--sparse", -1), ("--crop_size", 0, 31, 10 ** 9),
                          ("--n_worker", -1, 10 ** 6), ("--seed", -1, 2 ** 64), ("--bn_momentum", 0, 2),
                          ("--strength_warmup", 1, -1), ("--beta_end", 0.5, "inf", 1e308), ("--type", "int8"),
                          ("--gpu", -2), ("--backbone_name", "vgg", "torch.nn:Linear", "no.such:Thing", ".:x"),
                          ("--strengths", "soft"), ("--no_such_flag", 1), ("--label_map", "3", "1:7", "1:0,1:2", ","),
                          ("--class_weights", lab.root / "two_names.txt", lab.root / "nowhere.txt")):
        for value in values:
            yield f"{flag} {getattr(value, 'name', value)}", [*lab.new, flag, value], words.get(flag, flag.strip("-"))
    yield "neither --search nor --mask_path", [TRAIN, *TINY, *lab.lists], "--search", "--mask_path"
    yield "--search and --mask_path", [*lab.new, "--search"], "--mask_path"
    yield "--ft_model without a file", [TRAIN, *TINY, *lab.lists, "--ft_model"], "--ft_model"
    for flag in ("--mask_path", "--class_names", "--exp_path"):
        yield f"{flag} ''", [*lab.new, flag, ""], f"{flag} is empty"
    yield "--exp_path a file", [*lab.new, "--exp_path", lab.root / "empty"], "empty"
    for value in (0, "nan", 1e9):
        yield f"--scales {value}", [*lab.evaluation, "--scales", value], "--scales"
    image = [*lab.prediction, lab.data / "img/n5.jpg"]
    for command, flag, value in ((lab.evaluation, "--batch_size", 0),
                                 (lab.evaluation, "--crop_size", 1),
                                 (lab.evaluation, "--n_worker", -1),
                                 (image, "--n_worker", -1),
                                 (image, "--scales", 0),
                                 (image, "--crop_size", 0),
                                 ([*lab.prune, lab.search], "--thres", 1.5),
                                 ([*lab.prune, lab.search], "--thres", "nan"),
                                 ([DRAW, "unet"], "--thres", 2),
                                 ([DRAW, "unet"], "--depth", 0),
                                 ([MEASURE, "unet"], "--runs", 0),
                                 ([MEASURE, "unet"], "--batch_size", 0),
                                 ([MEASURE, "unet"], "--depth", -1),
                                 ([MAT, "--sbd_path", lab.root], "--workers", 0),
                                 ([*lab.prepare, lab.root], "--trainaug_count", "all")):
        yield f"{command[0]} {flag} {value}", [*command, flag, value], flag.strip("-")
    yield "--crop_size of three numbers", [*lab.new, "--crop_size", 64, 64, 64], "3 numbers"
    yield "predict.py --tile 10", [*image, "--tile", 10], "tile"
    yield "predict.py without images", lab.prediction, "no image is given"
    yield "predict.py with images and a list", [*image, "--list", lab.data / "val.txt"], "not both"
    yield "predict.py ''", [*image, ""], "images is empty"
    yield "measure.py --size 8 64", [MEASURE, "unet", "--size", 8, 64], "--size is 8"
    yield "export.py --out n.tflite", [*lab.export, lab.root / "n.tflite"], ".onnx or .pt2"
    yield "export.py --out below a file", [*lab.export, lab.root / "empty/n.pt2"], "cannot write"
    yield "predict.py --out a file", [*image, "--out", lab.root / "empty"], "cannot write"
    yield ("predict.py --out the images' folder",
           [*lab.prediction, lab.data / "gt/n5.png", "--out", lab.data / "gt"], "another --out")
    yield "draw.py --out a file", [DRAW, "unet", "--out", lab.root / "empty"], "cannot write"


def harmless(root):
    """{what: command}: odd input that simply works, of the files of make_files(root)."""
    lab = Lab(root)
    return {"a list with BOM, CRLF, blank lines and a name twice":
            [*lab.evaluation, "--eval_list", root / "harmless.txt"],
            "CMYK and 16-bit images": [*lab.evaluation, "--im_path", root / "odd"],
            "images of 1x1 and 5x3": [*lab.prediction, root / "dot.png", root / "grey_alpha.png"]}


def odd(root):
    """{what: (command, exit code, word)}: the odd files of odd_files.py, made in `root`, to what reads them."""
    lab, commands = Lab(root), {}
    for number, case in enumerate(CASES):
        folder = root / f"odd{number}"
        folder.mkdir()
        prepare(folder)
        case.write(folder)
        files = ["--im_path", folder / "img", "--gt_path", folder / "gt", "--eval_list", folder / "list.txt"]
        suffixes = case.options.get("naming")
        options = ["--im_suffix", suffixes[0], "--gt_suffix", suffixes[1]] if suffixes else []
        options += ["--label_map", case.options["rules"]] if "rules" in case.options else []
        evaluated = [*lab.evaluation, *files, *options]
        commands[f"{case.what}, eval_sparse_mask.py"] = evaluated, 2 if case.label is None else 0, case.said or "mIoU"
        if case.predict:
            code = 1 if case.image is None else 0
            commands[f"{case.what}, predict.py"] = [*lab.prediction, folder / "img"], code, ""
        if case.convert:
            convert = [LABELS, "--workers", 1, folder / "gt", folder / "list.txt", folder / "out"]
            if case.colours:
                (folder / "colours.txt").write_text(case.colours)
                convert += ["--colours", folder / "colours.txt"]
            commands[f"{case.what}, convert_labels.py"] = convert, 1 if case.convert == REFUSED else 0, ""
    return commands


def wrong(case, outcome):
    """What is wrong with the outcome of bad input, or an empty string."""
    if outcome.code not in (1, 2):
        return f"exit code {outcome.code}"
    if outcome.code == 2 and "\n" in outcome.text:
        return "more than one line"
    return ", ".join(f"no {word!r}" for word in case.words if word not in outcome.text)


def made_by_hostile_files(root):
    """The files that exist if a hostile file was obeyed, of those that make_files laid out."""
    places = (root / "made_by_checkpoint", root / "made_by_mask", root / "escaped", root.parent / "escaped")
    return [path for path in places if path.exists()]


def print_table(root):
    """Tries all cases in the empty folder `root` and prints each with its sentence. Raises AssertionError."""
    counts = {}
    print("| kind | what is wrong | exit code | sentence |\n|---|---|---|---|")
    make_files(root)
    for case in list_all(root).values():
        outcome = call(*case.command)
        assert not wrong(case, outcome), (case, outcome)
        sentences = " / ".join(outcome.text.splitlines())
        print(f"| {case.kind} | {case.what} | {outcome.code} | {sentences.replace(f'{root}/', '')} |")
        counts[case.kind] = counts.get(case.kind, 0) + 1
    for what, command in harmless(root).items():
        assert call(*command).code == 0, what
        print(f"| harmless | {what} | 0 | (it works) |")
    for what, (command, code, word) in odd(root).items():
        outcome = call(*command)
        assert outcome.code == code and word in outcome.text, (what, outcome)
        print(f"| odd | {what} | {code} | {outcome.text.splitlines()[0].replace(f'{root}/', '')} |")
    assert not made_by_hostile_files(root)
    print(f"\n{sum(counts.values())} bad inputs: {', '.join(f'{n} {kind}' for kind, n in counts.items())}; "
          f"hostile files ran nothing, and nothing was written outside")
