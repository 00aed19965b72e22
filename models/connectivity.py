"""The connectivity: which inputs each decoder stage reads. A boolean array as a value, its text and its file; no torch.

connectivity[stage, source, side], bool (L, L, 2). Stages and sources count from the deepest; side 0 is the encoder
(source j is tap E[j]), side 1 the decoder (source 0 is the global feature G, source j is D[j-1]). Stage l can read
sources 0 to l of both sides, so that L = 9 stages have 90 possible connections.
"""
import os
import re
import tokenize
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.files import require_file, write_atomically

MASK_SUFFIXES = (".npy", ".txt")
MAX_STAGES = 256  # no encoder has as many taps; a name in a file must not make arrays of any size


def empty(num_stages: int) -> np.ndarray:
    """A connectivity of `num_stages` stages without any connection: bool (L, L, 2)."""
    return np.zeros((num_stages, num_stages, 2), dtype=bool)


def from_table(num_stages: int, table: Mapping) -> np.ndarray:
    """{stage: (encoder sources, decoder-side sources)} -> connectivity."""
    connectivity = empty(num_stages)
    for stage, sides in table.items():
        for side, sources in enumerate(sides):
            connectivity[stage, list(sources), side] = True
    return connectivity


def published(num_stages: int = 9) -> np.ndarray:
    """The 15 connections that the paper's search found (its figure 5), for the nine taps of MobileNetV2."""
    if num_stages != 9:
        raise InputError(f"the published connectivity has 9 stages, this encoder {num_stages} taps; carry it over "
                         f"(models/transfer.py) or name another one")
    return from_table(9, {1: ((0,), (0,)), 2: ((2,), (0,)), 3: ((3,), (0,)), 8: ((0, 1, 2, 3, 8), (0, 2, 3, 4))})


def fcn(num_stages: int = 9) -> np.ndarray:
    """The finest stage reads the encoder's deepest tap alone, as FCN-32s does."""
    return from_table(num_stages, {num_stages - 1: ((0,), ())})


def unet(num_stages: int = 9) -> np.ndarray:
    """Each stage reads its own encoder tap and the stage below it, as U-Net does."""
    return from_table(num_stages, {l: ((l,), (l,) if l else ()) for l in range(num_stages)})


def hypercolumn(num_stages: int = 9) -> np.ndarray:
    """The finest stage reads every encoder tap, and nothing else: the hypercolumns of Hariharan et al. 2015."""
    return from_table(num_stages, {num_stages - 1: (range(num_stages), ())})


def full(num_stages: int = 9) -> np.ndarray:
    """Every connection of the search space."""
    return from_table(num_stages, {l: (range(l + 1), range(l + 1)) for l in range(num_stages)})


def sparseacn(num_stages: int = 9) -> np.ndarray:
    """Each stage reads what lies 1, 2, 4, 8, ... before it on both sides (Zhu et al. 2018, exponential offsets).

    Our reading, since the paper has no decoder: on each side, source j of stage l is at the distance l + 1 - j, so that
    E[l] and D[l-1] are at 1. G has the place before D[0].
    """
    offsets = [2 ** i for i in range(num_stages.bit_length())]
    table = {l: [l + 1 - offset for offset in offsets if offset <= l + 1] for l in range(num_stages)}
    return from_table(num_stages, {l: (sources, sources) for l, sources in table.items()})


def deeplabv3(num_stages: int = 9) -> np.ndarray:
    """The finest stage reads the second-deepest tap and G: the inputs of DeepLab-V3's ASPP (models/aspp.py)."""
    return from_table(num_stages, {num_stages - 1: ((min(1, num_stages - 1),), (0,))})


NAMED = {"published": published, "fcn": fcn, "unet": unet, "hypercolumn": hypercolumn, "full": full,
         "sparseacn": sparseacn, "deeplabv3": deeplabv3}


def check(connectivity: np.ndarray, num_stages: int | None = None) -> np.ndarray:
    """Returns the connectivity as bool (L, L, 2) if a network can be built from it, else raises InputError.

    num_stages: the number of encoder taps that it must fit, if known. A 0/1 array of numbers is taken too.
    """
    array = np.asarray(connectivity)
    if array.ndim != 3 or array.shape[0] != array.shape[1] or array.shape[2] != 2 or not len(array):
        raise InputError(f"the connectivity has the shape {array.shape}; expected (L, L, 2): stage, source, side")
    if num_stages is not None and len(array) != num_stages:
        raise InputError(f"the connectivity has {len(array)} stages, the encoder {num_stages} taps; "
                         f"give a connectivity of the shape {(num_stages, num_stages, 2)}")
    if array.dtype != bool:
        if array.dtype.kind not in "uif" or not np.isin(array, (0, 1)).all():
            raise InputError(f"the connectivity has values of type {array.dtype} other than 0 and 1; "
                             f"expected booleans")
        array = array.astype(bool)
    for l, source, side in np.argwhere(array):
        if source > l:
            raise InputError(f"stage {l} reads {source_name(source, side)}, which is finer than the stage; "
                             f"stage {l} can read sources 0 to {l}")
        if side == 1 and source > 0 and not array[source - 1].any():
            raise InputError(f"stage {l} reads D[{source - 1}], but stage {source - 1} has no input; "
                             f"give it one or remove the connection")
    if not array[-1].any():
        raise InputError(f"the finest stage ({len(array) - 1}) has no input, so there is no network; give it one")
    return array


def unread_stages(connectivity: np.ndarray) -> list[int]:
    """Stages that have inputs but that nothing reads: they cost time and change nothing."""
    return [l for l in range(len(connectivity) - 1) if connectivity[l].any() and not connectivity[:, l + 1, 1].any()]


def source_name(source: int, side: int) -> str:
    """"E[3]", "G" or "D[2]": the name of a source in the paper's notation."""
    return f"E[{source}]" if side == 0 else "G" if source == 0 else f"D[{source - 1}]"


def used_stages(connectivity: np.ndarray) -> list[int]:
    """Stages that have inputs, deepest first."""
    return [l for l in range(len(connectivity)) if connectivity[l].any()]


def summary(connectivity: np.ndarray) -> str:
    """"15 connections in 4 of 9 stages"."""
    count = int(connectivity.sum())
    return f"{count} connection{'s' if count != 1 else ''} in {len(used_stages(connectivity))} of " \
           f"{len(connectivity)} stages"


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """The Jaccard index of two connectivities of the same shape: connections in both over connections in either."""
    either = int((one | other).sum())
    return int((one & other).sum()) / either if either else 1.0


def describe(connectivity: np.ndarray) -> str:
    """A readable table: a line a stage that has inputs, with its sources by name."""
    lines = ["stage  encoder side          decoder side"]
    for l in used_stages(connectivity):
        sides = [" ".join(source_name(j, side) for j in np.flatnonzero(connectivity[l, :, side])) or "-"
                 for side in (0, 1)]
        lines.append(f"D[{l}]   {sides[0]:<20}  {sides[1]}")
    return "\n".join([*lines, summary(connectivity)])


def parse(text: str) -> np.ndarray:
    """The connectivity bool (L, L, 2) of a text of `describe`, or of the file that prune.py writes beside a mask.

    A line "D[l] SOURCES" names the inputs of stage l, such as "D[8] E[0] E[3] G D[4]"; the finest stage gives L. Lines
    that do not begin with D[ say nothing here. Raises InputError for a line that cannot be read.
    """
    inputs = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not line.startswith("D[") or "<-" in words:  # prune.py's list of all strengths has D[l] <- source
            continue
        stage = re.fullmatch(r"D\[(\d{1,3})\]", words[0])
        sources = [re.fullmatch(r"(?:([ED])\[(\d{1,3})\]|(G))", word) for word in words[1:] if word != "-"]
        if not stage or not all(sources) or int(stage[1]) >= MAX_STAGES:
            raise InputError(f"line {number}, {line.strip()[:100]!r}, names no stage and its inputs; "
                             f"expected for example: D[8] E[0] E[3] G D[4]")
        if int(stage[1]) in inputs:
            raise InputError(f"line {number} names stage {stage[1]} a second time; give each stage one line")
        inputs[int(stage[1])] = [(0, 1) if match[3] else (int(match[2]), 0) if match[1] == "E" else
                                 (int(match[2]) + 1, 1) for match in sources]
    if not inputs:
        raise InputError("the text names no stage; expected lines such as: D[8] E[0] E[3] G D[4]")
    connectivity = empty(max(inputs) + 1)
    for stage, places in inputs.items():
        for source, side in places:
            if source > stage:
                raise InputError(f"stage {stage} reads {source_name(source, side)}, which is finer than the stage; "
                                 f"stage {stage} can read sources 0 to {stage}")
            connectivity[stage, source, side] = True
    return connectivity


def save(path: str | Path, connectivity: np.ndarray) -> None:
    """Writes the connectivity as a numpy file, whole or not at all."""
    with write_atomically(path) as temporary, open(temporary, "wb") as file:
        np.save(file, np.asarray(connectivity, dtype=bool), allow_pickle=False)


def is_mask(name: str) -> bool:
    """Whether this is for `load`: a .npy or .txt file, or a name, also a misspelled one, of which it gives an error."""
    return str(name) in NAMED or str(name).endswith(MASK_SUFFIXES) or is_unknown_name(name)


def is_unknown_name(name: str | Path) -> bool:
    """Whether this is a single word that is neither in NAMED nor a file or folder: probably a misspelled name."""
    return re.fullmatch(r"\w+", str(name)) is not None and str(name) not in NAMED and not os.path.exists(name)


def load(path: str | Path, num_stages: int | None = None) -> np.ndarray:
    """Reads a connectivity by its name in NAMED, from a .npy file, or as text from a .txt file.

    Returns bool (L, L, 2), checked. Raises InputError if the file is missing, cannot be read, or fits no network.
    """
    if str(path) in NAMED:
        return NAMED[str(path)](num_stages or 9)
    if is_unknown_name(path):
        raise InputError(f"{path} is no file or folder, and no name of a connectivity; known are {', '.join(NAMED)}")
    path = require_file(path, "mask")
    try:
        return check(parse(read_text(path)) if path.suffix == ".txt" else read_array(path), num_stages)
    except InputError as error:
        raise InputError(f"the mask {path}: {error}", error.about) from None


def read_text(path: Path) -> str:
    """The text of a mask file."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError):
        raise InputError("it cannot be read as text; give what prune.py wrote") from None


def read_array(path: Path) -> np.ndarray:
    """The array of a mask file."""
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile):
        # numpy's own text advises to allow pickles
        raise InputError("it is no numpy array of booleans or numbers, or cannot be read; "
                         "give a .npy file that prune.py wrote") from None
    if not isinstance(array, np.ndarray):
        raise InputError("it is an archive of several arrays; give a .npy file that prune.py wrote")
    return array
