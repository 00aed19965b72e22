"""The files that bad_inputs.py feeds to the commands: broken, hostile, of another kind."""
import io
import os
import shutil
import tarfile

import numpy as np
import scipy.io
import torch
from PIL import Image

from helpers import tiny_data
from models import FullyDenseNetwork, SparseMask, connectivity

LONG_NAME = f"{'x' * 250}.jpg"


class MakesFile:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def make_files(root):
    """Everything that the cases read, in an empty folder."""
    (root / "data").mkdir()
    data = tiny_data(root / "data")
    make_checkpoints(root)
    make_masks(root)
    make_lists(root)
    for number, (_, _, spoil) in enumerate(broken_images()):
        shutil.copytree(data / "img", root / f"img{number}")
        spoil(root / f"img{number}/n5.jpg")
    for number, (_, _, spoil) in enumerate(broken_labels()):
        shutil.copytree(data / "gt", root / f"gt{number}")
        spoil(root / f"gt{number}/n5.png")
    for number, (_, _, write) in enumerate(broken_mats()):
        (root / f"sbd{number}/dataset/cls").mkdir(parents=True)
        write(root / f"sbd{number}/dataset/cls/2008_000001.mat")
    for number, (_, write) in enumerate(broken_archives(root)):
        (root / f"archive{number}/VOCdevkit/VOC2012").mkdir(parents=True)
        write(root / f"archive{number}/benchmark.tgz")
    shutil.copy(data / "img/n5.jpg", root / LONG_NAME)
    Image.new("RGB", (4, 4), (1, 2, 3)).save(data / "gt/colour.png")
    (root / "empty").write_text("")
    (root / "folder").mkdir()
    for suffix in (".onnx", ".pt2"):
        (root / f"empty{suffix}").write_text("")
    for name, text in (("bert", '{"model_type": "bert"}'), ("broken", '{"depth": ')):
        (root / name).mkdir()
        (root / name / "config.json").write_text(text)
    (root / "one.txt").write_text("n0\n")

    (root / "void").mkdir()
    for i in range(7):
        Image.fromarray(np.full((70, 76), 255, np.uint8)).save(root / f"void/n{i}.png")
    odd = root / "odd"  # and harmless
    odd.mkdir()
    Image.new("CMYK", (76, 70)).save(odd / "n5.jpg")
    Image.fromarray(np.zeros((70, 76), np.uint16)).save(odd / "n6.png")
    Image.new("L", (1, 1)).save(root / "dot.png")
    Image.new("LA", (5, 3)).save(root / "grey_alpha.png")


def make_checkpoints(root):
    """Checkpoints and encoder weights."""
    torch.manual_seed(0)
    search, train = root / "checkpoint_6.pth.tar", root / "trained.pth.tar"
    network = FullyDenseNetwork(depth=4, num_classes=3)
    torch.save({"iter": 6, "model": {"backbone": "mobilenet_v2"}, "state_dict": network.state_dict()}, search)
    state = network.state_dict()
    weak = {**state, "decoders.Decoders_8._logit_": torch.full((9, 2), -20.0)}
    torch.save({"state_dict": weak}, root / "weak.pth.tar")
    network = SparseMask(connectivity.fcn(), depth=4, num_classes=3)
    content = {"iter": 6, "model": {"backbone": "mobilenet_v2"}, "state_dict": network.state_dict(), "settings": {}}
    torch.save(content, train)
    one_lacks = dict(content["state_dict"])
    one_lacks.pop("backbone.conv1.weight")
    torch.save({"state_dict": one_lacks}, root / "lacks.pth.tar")
    other_shape = {**content["state_dict"], "backbone.conv1.weight": torch.zeros(2, 2)}
    torch.save({"state_dict": other_shape}, root / "shape.pth")
    name = "backbone.conv1.weight"
    spoilt = {"nan.pth": content["state_dict"][name] * float("nan"), "integers.pth": torch.ones(32, 3, 3, 3, dtype=int),
              "sparse.pth": content["state_dict"][name].to_sparse()}
    for file, tensor in spoilt.items():
        torch.save({"state_dict": {**content["state_dict"], name: tensor}}, root / file)
    torch.save({"state_dict": {"features": torch.zeros(3)}}, root / "nothing.pth")
    torch.save([1, 2], root / "list.pth")
    torch.save({"state_dict": {}, "x": MakesFile(root / "made_by_checkpoint")}, root / "hostile.pth.tar")
    torch.save({**content, "model": {"backbone": "os:getcwd"}}, root / "imports.pth.tar")
    (root / "cut.pth.tar").write_bytes(train.read_bytes()[:5000])
    flipped = bytearray(train.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (root / "flipped.pth.tar").write_bytes(flipped)
    (root / "text.pth.tar").write_text("this is no such file\n")


def make_masks(root):
    """Connectivities."""
    (root / "text.txt").write_text("this is no such file\n")
    np.save(root / "flat.npy", np.zeros((9, 9), bool))
    np.save(root / "float.npy", np.full((9, 9, 2), 0.5))
    np.save(root / "object.npy", np.array([MakesFile(root / "made_by_mask")], object), allow_pickle=True)
    np.save(root / "none.npy", np.zeros((9, 9, 2), bool))
    np.save(root / "five.npy", connectivity.fcn(5))
    dangling = connectivity.fcn()
    dangling[8, 4, 1] = True
    np.save(root / "dangling.npy", dangling)
    finer = connectivity.fcn()
    finer[3, 6, 0] = True
    np.save(root / "finer.npy", finer)
    (root / "cut.npy").write_bytes((root / "dangling.npy").read_bytes()[:150])
    np.savez(root / "zip.npz", connectivity.fcn())
    (root / "names.txt").write_text("D[8] E[0] E[19]\n")


def make_lists(root):
    """Lists of image names."""
    for name, text in {"empty.txt": "", "blank.txt": "\n  \n\n", "unknown.txt": "n5\nmissing\n", "up.txt": "../n5\n",
                       "absolute.txt": "/etc/passwd\n", "drive.txt": "C:\\n5\n", "control.txt": "n5\x07\n",
                       "two_names.txt": "a\nb\n", "long.txt": "a" * 300, "colour.txt": "colour\n",
                       "columns.txt": "img/n5.jpg gt/n9.png\n", "colours.txt": "ground,1,2\n"}.items():
        (root / name).write_text(text)
    (root / "binary.txt").write_bytes(bytes(range(128, 256)))
    (root / "harmless.txt").write_bytes("\ufeffn5\r\n\r\n  n6  \r\nn5\r\n".encode())


def cut(length):
    """A function that leaves so many bytes of a file, or such a share of them."""
    def write(path):
        content = path.read_bytes()
        path.write_bytes(content[:length if length > 1 else int(length * len(content))])
    return write


def broken_images():
    """(what, words of the sentence, function(path of the image) that breaks it) of one image of the list, n5."""

    def bomb(path):  # a PNG that says it is of 20,000 x 20,000 pixels
        Image.new("1", (20000, 20000)).save(path, format="PNG")

    return [
        ("cut short", ["n5.jpg", "cannot be read"], cut(0.5)),
        ("zero bytes", ["n5.jpg", "cannot be read"], lambda path: path.write_bytes(b"")),
        ("text named .jpg", ["n5.jpg", "cannot be read"], lambda path: path.write_text("no image")),
        ("20,000 x 20,000 pixels", ["n5.jpg", "cannot be read", "exceeds"], bomb),
        ("32-bit floats", ["n5.jpg", "32 bits"], lambda path: Image.new("F", (76, 70)).save(path, format="TIFF")),
        ("another size than its label", ["n5.jpg", "60x50", "76x70"],
         lambda path: Image.new("RGB", (60, 50)).save(path)),
        ("EPS, which would run Ghostscript (hostile)", ["n5.jpg", "cannot identify"],
         lambda path: Image.new("RGB", (76, 70)).save(path, format="EPS")),
        ("missing", ["n5", "no image of that name"], lambda path: path.unlink()),
        ("a folder named .jpg", ["n5", "no image of that name"], lambda path: (path.unlink(), path.mkdir())),
    ]


def broken_labels():
    """As broken_images, of a label."""

    def save(image):
        return lambda path: image.save(path)

    return [
        ("cut short", ["n5.png", "cannot be read"], cut(60)),
        ("zero bytes", ["n5.png", "cannot be read"], lambda path: path.write_bytes(b"")),
        ("JPEG named .png", ["n5.png", "cannot be read"],
         lambda path: Image.new("L", (76, 70)).save(path, format="JPEG")),
        ("RGB", ["n5.png", "RGB", "convert_labels"], save(Image.new("RGB", (76, 70), (1, 2, 3)))),
        ("16 bits, a value beyond", ["n5.png", "value 300"], save(Image.fromarray(np.full((70, 76), 300, np.uint16)))),
        ("another size than its image", ["n5.png", "60x50"], save(Image.new("L", (60, 50)))),
        ("a class out of range", ["n5.png", "value 3", "row 0"], save(Image.new("L", (76, 70), 3))),
        ("missing", ["n5", "does not exist"], lambda path: path.unlink()),
    ]


def broken_mats():
    """(what, words of the sentence, function(path) that writes such a .mat)."""

    def struct(labels):
        return {"GTcls": {"Segmentation": labels}}

    def save(content, **options):
        return lambda path: scipy.io.savemat(path, content, **options)

    good = np.zeros((4, 5), np.uint8)
    return [
        ("no GTcls", ["has no GTcls"], save({"other": good})),
        ("GTcls is not a struct", ["not a struct"], save({"GTcls": good})),
        ("v7.3 (HDF5)", ["7.3"], lambda path: path.write_bytes(b"MATLAB 7.3 MAT-file" + bytes(500))),
        ("cut short", ["not a complete MATLAB 5"],
         lambda path: (save(struct(good))(path), cut(200)(path))),
        ("zero bytes", ["not a complete MATLAB 5"], lambda path: path.write_bytes(b"")),
        ("text named .mat", ["not a complete MATLAB 5"], lambda path: path.write_text("no labels")),
        ("a class out of range", ["has the value 77"], save(struct(good + np.uint8(77)))),
        ("half a class", ["has the value 0.5"], save(struct(good + 0.5))),
        ("one dimension too many", ["shape (2, 3, 4)"], save(struct(np.zeros((2, 3, 4))))),
    ]


def archive(*members):
    """A function that writes an archive of these members alone."""
    def write(path):
        with tarfile.open(path, "w:gz") as tar:
            for info in members:
                tar.addfile(info, io.BytesIO(b"x" * info.size))
    return write


def member(name, kind=tarfile.REGTYPE, target=""):
    """A member of an archive: a file of one byte, or a link to `target`, or a device."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, 1 if kind == tarfile.REGTYPE else 0
    return info


def broken_archives(root):
    """(what, function(path) that writes such an archive of SBD); most would write outside of the folder."""
    inside = "benchmark_RELEASE/x"
    return [
        ("a member above the folder", archive(member("../escaped"))),
        ("an absolute member", archive(member(str(root / "escaped")))),
        ("a link out of the folder", archive(member(inside, tarfile.SYMTYPE, "../../escaped"))),
        ("a hard link to nothing", archive(member(inside, tarfile.LNKTYPE, "benchmark_RELEASE/nothing"))),
        ("a device", archive(member(inside, tarfile.CHRTYPE))),
        ("cut short", lambda path: (archive(member(inside))(path), cut(60)(path))),
    ]
