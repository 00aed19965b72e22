"""Small odd files of ordinary users, and what the commands make of each: the cases, and the table in docs/data.md.

    python tests/odd_files.py     prints the table
"""
import io
import struct
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

SIZE = (40, 48)
NUM_CLASSES = 3
READ, CONVERTED, REFUSED = "reads it", "converts it", "refuses it"
ORIENTATION = 0x0112


def truth(seed=0):
    """An image uint8 (H, W, 3), smooth so that a JPEG keeps it, and its label uint8 (H, W) of three classes."""
    rng = np.random.default_rng(seed)
    image, label = np.full((*SIZE, 3), 40, np.uint8), np.zeros(SIZE, np.uint8)
    for value in (1, 2):
        y, x = rng.integers(0, 16, 2) + 8 * value
        image[y:y + 12, x:x + 12, value], label[y:y + 12, x:x + 12] = 200, value
    label[:2] = 255
    return image, label


IMAGE, LABEL = truth()


class Case(NamedTuple):
    """what: the file; write(root): fills root/img, root/gt and root/list.txt. train, predict, convert: what those
    commands do, None where there is nothing to say. options: of the dataset. image, label: what has to be read, the
    label None if the dataset refuses. colours: a list for the converter. said: words of the warning or of the refusal.
    """
    what: str
    write: Callable[[Path], None]
    train: str | None = READ
    predict: str | None = None
    convert: str | None = None
    options: dict = {}
    image: np.ndarray | None = IMAGE
    label: np.ndarray | None = LABEL
    said: str | None = None
    colours: str | None = None


def prepare(root):
    """The folders, with the image and the label as they should be, and the list."""
    for part in ("img", "gt"):
        (root / part).mkdir()
    Image.fromarray(IMAGE).save(root / "img" / "n0.png")
    Image.fromarray(LABEL).save(root / "gt" / "n0.png")
    (root / "list.txt").write_text("n0\n")


def image(save, name="n0.png"):
    """Replaces the image: save(image, path)."""
    def write(root):
        (root / "img" / "n0.png").unlink()
        save(Image.fromarray(IMAGE), root / "img" / name)
    return write


def label(make, name="n0.png", **options):
    """Replaces the label by make(LABEL), an array or a PIL image."""
    def write(root):
        (root / "gt" / "n0.png").unlink()
        made = make(LABEL)
        made = made if isinstance(made, Image.Image) else Image.fromarray(made)
        made.save(root / "gt" / name, **options)
    return write


def names(text, encoding="utf-8", image_name=None, label_name=None):
    """Replaces the list, and renames the files."""
    def write(root):
        (root / "list.txt").write_bytes(text.encode(encoding))
        for part, name in (("img", image_name), ("gt", label_name)):
            if name:
                (root / part / name).parent.mkdir(exist_ok=True)
                (root / part / "n0.png").rename(root / part / name)
    return write


def turned(operation, orientation):
    """A JPEG stored turned, with the EXIF orientation that turns it back."""
    def save(picture, path):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        picture.transpose(operation).save(path, exif=exif, quality=95, subsampling=0)
    return save


def cut_jpeg(keep):
    """A JPEG of which only keep(bytes) is there."""
    def save(picture, path):
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=95, subsampling=0)
        path.write_bytes(keep(stream.getvalue()))
    return save


def deep_png(values, path):
    """A PNG with 16 bits a sample and three channels, which Pillow does not write. values: (H, W, 3)."""
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) +
                     chunk(b"IEND", b""))


def long_history():
    """Two megabytes of text, compressed to two kilobytes."""
    info = PngImagePlugin.PngInfo()
    info.add_text("history", "x" * 2_000_000, zip=True)
    return info


GREY = np.asarray(Image.fromarray(IMAGE).convert("L"))
GREY_IMAGE = np.repeat(GREY[..., None], 3, 2)
BINARY = np.where(LABEL == 255, 255, np.minimum(LABEL, 1)).astype(np.uint8)  # what masks of 0 and 255 mean: 0 and 1
MASK = np.where(LABEL % 255 > 0, 255, 0).astype(np.uint8)
OWN = np.zeros((256, 3), np.uint8)
OWN[[0, 1, 2, 255]] = [10, 10, 10], [200, 30, 30], [30, 30, 200], [255, 255, 255]
COLOURS = "ground,10,10,10\nred,200,30,30\nblue,30,30,200\nvoid,255,255,255\n"
LABELMAP = "# label:color_rgb:parts:actions\nground:10,10,10::\nred:200,30,30::\nblue:30,30,200::\nvoid:255,255,255::\n"
ACCENT = "zu\u0308rich"
TURNED = "turns it as its EXIF orientation says"
LAST_ROWS = np.where(np.arange(SIZE[0])[:, None] < 32, LABEL, 255).astype(np.uint8)

CASES = [
    Case("an image of another format: .JPG, .Tiff, .BMP, .webp",
         image(lambda i, p: i.save(p, lossless=True), "n0.WebP"), READ, READ),
    Case("a JPEG with EXIF orientation, its label as viewers show it",
         image(turned(Image.Transpose.ROTATE_90, 6), "n0.jpg"), TURNED, TURNED),
    Case("the same, upside down", image(turned(Image.Transpose.ROTATE_180, 3), "n0.jpg"), TURNED, TURNED),
    Case("the same, mirrored", image(turned(Image.Transpose.FLIP_LEFT_RIGHT, 2), "n0.jpg"), TURNED, TURNED),
    Case("the same, but its label fits only the pixels as they are stored",
         lambda root: (image(turned(Image.Transpose.ROTATE_90, 6), "n0.jpg")(root),
                       label(lambda a: np.rot90(a).copy())(root)),
         "does not turn it, and says so once", TURNED, None, {}, np.rot90(IMAGE), np.rot90(LABEL),
         "as they are stored"),
    Case("a grey image with 12 bits in 16", image(lambda i, p: Image.fromarray(GREY.astype(np.uint16) * 16).save(p)),
         "takes 4095 as white, and says so once", "the same", None, {}, GREY_IMAGE, LABEL, "4095 were white"),
    Case("a PNG with 12 bits in 16 and three channels",
         image(lambda i, p: deep_png(IMAGE.astype(np.uint16) * 16, p)),
         "takes 4095 as white, and says so once", "the same", None, {}, IMAGE, LABEL, "4095 were white"),
    Case("an image or label with megabytes of text in it",
         lambda root: [Image.open(path).save(path, pnginfo=long_history()) for path in root.glob("*/n0.png")],
         READ, READ, CONVERTED),
    Case("a JPEG without its last two bytes", image(cut_jpeg(lambda b: b[:-2]), "n0.jpg"),
         "reads it, and names it", "the same", None, {}, IMAGE, LABEL, "lacks its last bytes"),
    Case("a JPEG without its last rows", image(cut_jpeg(lambda b: b[:-150]), "n0.jpg"),
         "takes the missing rows as void, and names it", "the same", None, {}, IMAGE, LAST_ROWS, "rows are void"),
    Case("half of a JPEG", image(cut_jpeg(lambda b: b[:len(b) // 2]), "n0.jpg"), REFUSED, "names it, and goes on",
         None, {}, None, None, "cannot be read"),

    Case("a mask of 0 and 255", label(lambda a: MASK), "says before the first step that 255 is void",
         None, "says that 255 is void", {}, IMAGE, MASK),
    Case("the same with --label_map 255:1", label(lambda a: MASK), "takes 255 as class 1", options={"rules": "255:1"},
         label=np.where(MASK == 255, 1, 0)),
    Case("11 for void, with --label_map 11:255", label(lambda a: np.where(a == 255, 11, a).astype(np.uint8)),
         "takes 11 as void", options={"rules": "11:255"}),
    Case("classes from 1 and 0 for void, with --label_map 0:255,1-3:0-2",
         label(lambda a: np.where(a == 255, 0, a + 1).astype(np.uint8)), "takes 0 as void and 1 as class 0",
         options={"rules": "0:255,1-3:0-2"}),
    Case("several values of one class, with --label_map 1-2:1", label(lambda a: a), "takes both as class 1",
         options={"rules": "1-2:1"}, label=BINARY),
    Case("a value beyond the number of classes", label(lambda a: np.where(a == 2, 7, a)), REFUSED, None, CONVERTED,
         {}, None, None, "7:255 for void"),
    Case("indices in RGB or RGBA with equal channels", label(lambda a: np.repeat(a[..., None], 3, 2)), READ, None,
         CONVERTED),
    Case("indices with 16 bits", label(lambda a: a.astype(np.uint16)), READ, None, CONVERTED),
    Case("a label as .BMP, .tif or .PNG", label(lambda a: a, "n0.BMP"), READ, None, CONVERTED),
    Case("colours of one's own, with --colours FILE or labelmap.txt", label(lambda a: OWN[a]),
         "refuses it, and names the converter", None, CONVERTED, {}, None, None, "convert_labels.py", COLOURS),
    Case("the same, with an annotation tool's labelmap.txt", label(lambda a: OWN[a]),
         "refuses it, and names the converter", None, CONVERTED, {}, None, None, "convert_labels.py", LABELMAP),
    Case("a label as JPEG", label(lambda a: a, "n0.jpg"), REFUSED, None, REFUSED, {}, None, None,
         "does not keep class indices"),

    Case("names with suffix, any case, backslashes", names("sub\\n0.JPG\n", image_name="sub/n0.PNG",
                                                           label_name="sub/n0.png"), READ, None, CONVERTED),
    Case("names such as x_leftImg8bit.png and x_gtFine_labelTrainIds.png, with --im_suffix and --gt_suffix",
         names("n0\n", image_name="n0_leftImg8bit.png", label_name="n0_gtFine_labelTrainIds.png"), READ,
         options={"naming": ("_leftImg8bit.png", "_gtFine_labelTrainIds.png")}),
    Case("the same, without the options", names("n0\n", label_name="n0_gtFine_labelTrainIds.png"),
         "refuses it, and names the option", None, None, {}, None, None, "give the labels' suffix"),
    Case("two columns, image and label", names("/img/n0.png /gt/x 1.png\n", label_name="x 1.png"), READ),
    Case("blanks of any kind, and accents composed or not",
         names(unicodedata.normalize("NFC", ACCENT) + "\u00a01\n", image_name=f"{ACCENT} 1.png",
               label_name=f"{ACCENT}\u202f1.png"), READ, None, CONVERTED),
    Case("a list in UTF-16 with a byte order mark", names("n0\n", "utf-16"), READ, None, CONVERTED),
]


def table():
    """The table of the cases, Markdown."""
    rows = ["| file | training, evaluation | `predict.py` | `convert_labels.py` |", "|---|---|---|---|"]
    return rows + [f"| {case.what} | {case.train or ''} | {case.predict or ''} | {case.convert or ''} |"
                   for case in CASES]


if __name__ == "__main__":
    print("\n".join(table()))
