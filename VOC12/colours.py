"""Lists of colours, one for each class, and labels that are painted in them."""
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.colour_map import colour_map
from utils.errors import InputError
from VOC12.labels import CLASS_NAMES, VOID
from VOC12.lists import read_lines

VOID_NAMES = ("void", "ignore")  # in lower or upper case
EXPECTED = "expected name,R,G,B or name,#RRGGBB, one class a line"
NAME_AND_COLOUR = re.compile(r"(.*?\S)\s*:\s*(\d+)[\s,;]+(\d+)[\s,;]+(\d+)\s*(?::.*)?")  # a line of labelmap.txt


class Colours(NamedTuple):
    """A list of colours: `rgb`, uint8 (N, 3), no two the same, with their `names` and `labels` (0..254, 255 is void).

    title: what messages call them, as "VOC's 22".
    """
    title: str
    names: tuple[str, ...]
    labels: tuple[int, ...]
    rgb: np.ndarray

    def class_names(self) -> list[str]:
        """The names by class index. Where several colours have an index the first one's, where none has "class 3"."""
        names = dict(zip(reversed(self.labels), reversed(self.names), strict=True))
        last = max((label for label in names if label != VOID), default=-1)
        return [names.get(label, f"class {label}") for label in range(last + 1)]


def voc_colours() -> Colours:
    """VOC's 21 classes and void."""
    labels = (*range(len(CLASS_NAMES)), VOID)
    return Colours(f"VOC's {len(labels)}", (*CLASS_NAMES, "void"), labels, colour_map()[list(labels)])


def read_colours(path: str | Path) -> Colours:
    """The colours in a text file, one class a line; the first line has the index 0.

    A line is `name,R,G,B`, with commas, semicolons, tabs or blanks; or `R,G,B,name`; or `name:R,G,B:...`, as annotation
    tools write labelmap.txt. `#RRGGBB` may stand for R,G,B. A whole number before or instead of the name is the class
    index. Lines with the name void or ignore mean 255 and are not counted. Blank lines, lines that begin with #, and
    a header are ignored.
    Raises InputError, naming the line, for any other line, a colour that occurs twice, or an index above 254.
    """
    names, labels, colours = [], [], []
    given = None  # whether the lines give the indices
    for where, line in _content_lines(path):
        index, name, colour = _parse(line, where)
        label = VOID
        if name.lower() not in VOID_NAMES:
            if given not in (None, index is not None):
                raise InputError(f"{where}: some classes have an index before the name and some have none; give one "
                                 f"to all or to none of them", about="colours")
            given = index is not None
            label = index if given else sum(label != VOID for label in labels)
            if label > VOID or (label == VOID and not given):
                raise InputError(f"{where}: {name!r} has the index {label}; expected 0 to {VOID - 1}, or {VOID} for "
                                 f"void", about="colours")
            if name in names and not given:
                raise InputError(f"{where}: the name {name!r} occurs twice; give each class a name of its own",
                                 about="colours")
        if colour in colours:
            raise InputError(f"{where}: {name!r} has the colour {colour} of {names[colours.index(colour)]!r}; "
                             f"give each class a colour of its own", about="colours")
        names.append(name)
        labels.append(label)
        colours.append(colour)
    if not set(labels) - {VOID}:
        raise InputError(f"the list of colours {path} has no class; {EXPECTED}", about="colours")
    return Colours(f"the {len(colours)} in {path}", tuple(names), tuple(labels), np.array(colours, dtype=np.uint8))


def labels_of_colours(pixels: np.ndarray, colours: Colours) -> np.ndarray:
    """Labels, uint8 (H, W), of colours, uint8 (H, W, 3).

    Raises InputError for a colour that is none of the list, with the pixel and the nearest colour.
    """
    codes = _codes(colours.rgb)
    order = np.argsort(codes)
    found = _codes(pixels)
    position = np.searchsorted(codes[order], found).clip(max=len(codes) - 1)
    wrong = codes[order][position] != found
    if wrong.any():
        row, column = np.unravel_index(wrong.argmax(), wrong.shape)
        colour = pixels[row, column].tolist()
        nearest = np.square(colours.rgb.astype(int) - colour).sum(axis=1).argmin()
        raise InputError(
            f"the pixel at row {row}, column {column} has the colour {tuple(colour)}, which is none of "
            f"{colours.title} ({wrong.mean():.2%} of the pixels are such; the nearest to this one is "
            f"{tuple(colours.rgb[nearest].tolist())}, {colours.names[nearest]}); give a list with all colours, "
            f"and labels that were saved without smoothed edges and lossy compression")
    return np.array(colours.labels, dtype=np.uint8)[order][position]


def _codes(rgb):
    """One number for each colour: uint8 (..., 3) -> int64 (...)."""
    return rgb @ np.array([1 << 16, 1 << 8, 1])


def _content_lines(path) -> Iterator[tuple[str, str]]:
    """Yields (what to call the line in a message, the line), without comments, blank lines and a header."""
    first = True
    for number, line in read_lines(path, "list of colours"):
        if line.startswith("#"):
            continue
        words = set(re.findall("[a-z]+", line.lower()))
        is_header = first and not re.search(r"\d", line) and (
            {"r", "g", "b"} <= words or {"red", "green", "blue"} <= words or words & {"rgb", "color", "colour", "hex"})
        first = False
        if not is_header:
            yield f"{path}, line {number}", line


def _parse(line, where):
    """(index or None, name, (R, G, B)) of a line. Raises InputError if it is no class."""
    cleaned = re.sub(r"(?<=[\s,;:])#([0-9a-fA-F]{6})\b", lambda m: " ".join(map(str, bytes.fromhex(m[1]))),
                     line.replace('"', ""))
    cleaned = re.sub(r"\s#.*", "", cleaned).rstrip(",; \t")
    if match := NAME_AND_COLOUR.fullmatch(cleaned):
        index, name, colour = None, match[1], match.groups()[1:]
    else:
        index, name, colour = _split(cleaned)
    if len(colour) != 3 or max(map(int, colour)) > 255:
        raise InputError(f"{where}: {line[:100]!r} is no name with a colour; {EXPECTED}, with R, G and B from 0 to 255",
                         about="colours")
    return index, name, tuple(map(int, colour))


def _split(line):
    """(index or None, name, numbers of the colour) of a line with separators; no numbers if there is no one reading."""
    separated = re.search(r"[,;\t]", line)
    tokens = []
    for field in re.split(r"[,;\t]", line) if separated else line.split():
        tokens += field.split() if re.fullmatch(r"[\d\s]+", field) else [field.strip()]
    is_word = [not token.isdecimal() for token in tokens]
    if not any(is_word):  # index,R,G,B
        return (int(tokens[0]), tokens[0], tokens[1:]) if len(tokens) == 4 else (None, "", [])
    start, stop = is_word.index(True), len(tokens) - is_word[::-1].index(True)
    if start == 3 and len(tokens) - stop < 3:
        stop = len(tokens)
    elif not separated:
        stop = max(stop, len(tokens) - 3)  # a name that ends in a number
    before, name, after = tokens[:start], " ".join(tokens[start:stop]), tokens[stop:]
    if (len(before), len(after)) == (3, 0):
        return None, name, before
    if len(before) < 2 and len(after) == 3:
        return int(before[0]) if before else None, name, after
    return None, name, []
