"""A connectivity found on one encoder, carried over to another (paper 4.3): features are matched by stride.

docs/method.md has the rule with examples. Taps and stages count from the deepest, as in models/connectivity.py.
"""
import contextlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models import connectivity as conn
from models.backbones import make_backbone
from models.mobilenet_v2 import MobileNetV2
from utils.errors import InputError


class Encoder(NamedTuple):
    """The encoder that a connectivity was found on: its name, and the strides of its taps, deepest first."""
    name: str
    strides: tuple


PUBLISHED_ON = Encoder("mobilenet_v2", MobileNetV2.strides)
ENCODER_LINE = re.compile(r"^encoder: (\S+), strides (\d{1,5}(?: \d{1,5})*)[ \r]*$", re.MULTILINE)


def match_taps(source_strides: Sequence[int], target_strides: Sequence[int]) -> list[int | None]:
    """The target tap that each source tap becomes: one of the same stride, or None where there is none.

    Of several, the deepest source tap becomes the deepest target tap, the next the next; where no more are left, the
    rest become the last one. The result never falls, so what was deeper does not become finer.
    """
    matches = []
    for j, stride in enumerate(source_strides):
        places = [t for t, target in enumerate(target_strides) if target == stride]
        rank = source_strides[:j].count(stride)
        matches.append(places[min(rank, len(places) - 1)] if places else None)
    return matches


def match_stages(source_strides: Sequence[int], target_strides: Sequence[int]) -> list[int | None]:
    """The target stage that each source stage becomes: as its tap, see `match_taps`, or None.

    The finest stage gives the logits, so it becomes the finest one, whatever the strides.
    """
    return [*match_taps(source_strides, target_strides)[:-1], len(target_strides) - 1]


def carry(connectivity: np.ndarray, source_strides: Sequence[int],
          target_strides: Sequence[int]) -> tuple[np.ndarray, list[str]]:
    """Carries a connectivity, bool (L, L, 2), over to an encoder whose M taps have other strides.

    source_strides, target_strides: of the L and of the M taps, deepest first. Stages that become one stage join their
    inputs; G stays G.

    Returns the connectivity, bool (M, M, 2), and lines that state what went where and what was dropped: none if the
    strides are the same. Raises InputError if no tap is left that it reads.
    """
    source_strides, target_strides = tuple(source_strides), tuple(target_strides)
    for strides in (source_strides, target_strides):
        if list(strides) != sorted(strides, reverse=True):
            raise InputError(f"the strides {spaced(strides)} do not fall; taps are listed deepest first")
    connectivity = conn.check(connectivity, len(source_strides))
    if source_strides == target_strides:
        return connectivity, []
    taps, stages = match_taps(source_strides, target_strides), match_stages(source_strides, target_strides)
    left, dropped = drop_unmatched(connectivity, taps, stages, source_strides)
    if not left[:, :, 0].any():
        raise InputError(f"carried from the strides {spaced(source_strides)} to {spaced(target_strides)}, the "
                         f"connectivity would read no tap of the encoder; give another one, for example unet")
    carried = conn.empty(len(target_strides))
    for l, source, side in np.argwhere(left):
        if side == 0:
            carried[stages[l], taps[source], 0] = True
        elif source == 0:
            carried[stages[l], 0, 1] = True
        elif stages[source - 1] < stages[l]:  # else the two have become one stage
            carried[stages[l], stages[source - 1] + 1, 1] = True
    logits = "" if source_strides[-1] == target_strides[-1] else \
        f" (so the logits have the stride {target_strides[-1]}, not {source_strides[-1]})"
    lines = [f"strides: {spaced(source_strides)} -> {spaced(target_strides)}",
             f"taps: {grouped((f'E[{j}]', f' -> E[{taps[j]}]') for j in np.flatnonzero(left[:, :, 0].any(axis=0)))}",
             f"stages: {grouped((f'D[{l}]', f' -> D[{stages[l]}]') for l in conn.used_stages(left))}{logits}",
             f"dropped: {grouped(dropped) or 'nothing'}"]
    return conn.check(carried), [*lines, *conn.describe(carried).splitlines()]


def drop_unmatched(connectivity: np.ndarray, taps: Sequence[int | None], stages: Sequence[int | None],
                   strides: Sequence[int]) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Drops what has no match, then stages that this leaves without input, then stages that it leaves unread.

    connectivity: bool (L, L, 2). taps, stages: what they become. strides: of the taps, for the reasons.
    Returns what is left of the connectivity, bool (L, L, 2), and pairs: what was dropped, and why.
    """
    left, dropped = connectivity.copy(), []
    inner = [l for l in conn.used_stages(connectivity) if l < len(left) - 1]  # the finest stage stays

    def drop_stage(l, reason):
        inner.remove(l)
        left[l] = left[:, l + 1, 1] = False
        dropped.append((f"D[{l}]", reason))

    for j in np.flatnonzero(connectivity[:, :, 0].any(axis=0)):
        if taps[j] is None:
            left[:, j, 0] = False
            dropped.append((f"E[{j}]", f" (no tap has the stride {strides[j]})"))
    for l in inner.copy():
        if stages[l] is None:
            drop_stage(l, f" (no tap has the stride {strides[l]})")
    for l in inner.copy():  # deepest first: a stage that goes is an input less for a finer one
        if not left[l].any():
            drop_stage(l, " (no input is left)")
    for l in inner[::-1]:  # finest first: a stage that goes is a reader less for a deeper one
        if not left[:, l + 1, 1].any():
            drop_stage(l, " (nothing reads it)")
    return left, dropped


def grouped(pairs: Iterable[tuple[str, str]]) -> str:
    """Pairs of a name and its end -> "E[0] E[1] -> E[0], E[3] -> E[1]": the names of one end stand together."""
    names = {}
    for name, end in pairs:
        names.setdefault(end, []).append(name)
    return ", ".join(f"{' '.join(group)}{end}" for end, group in names.items())


def load_for_encoder(path: str | Path, strides: Sequence[int],
                     mask_encoder: str | None = None) -> tuple[np.ndarray, list[str]]:
    """Reads a connectivity by name or from a file, as connectivity.load does, for an encoder of these strides.

    `published`, and a mask whose encoder is known, are carried over if their encoder has other strides. The other names
    mean the same for every encoder. Which encoder a mask was found on, its text says (prune.py writes it), or
    mask_encoder does, by name.

    Returns the connectivity, bool (L, L, 2), and what `carry` has to say. Raises InputError if it cannot be read, does
    not fit, or if its encoder has to be known and is not.
    """
    if str(path) in conn.NAMED and mask_encoder:
        raise InputError(f"{path} is a connectivity known by name, so its encoder, {mask_encoder}, cannot be chosen; "
                         f"leave it out", about="mask_encoder")
    if str(path) in conn.NAMED and str(path) != "published":
        return conn.load(path, len(strides)), []
    connectivity = conn.load(path)
    encoder = PUBLISHED_ON if str(path) == "published" else encoder_of_mask(Path(path), mask_encoder)
    if encoder is None:
        if len(connectivity) != len(strides):
            raise InputError(f"the mask {path} has {len(connectivity)} stages, the encoder {len(strides)} taps; name "
                             f"the encoder that it was found on for it to be carried over", about="mask_encoder")
        return connectivity, []
    try:
        carried, lines = carry(connectivity, encoder.strides, strides)
    except InputError as error:
        raise InputError(f"the mask {path}, found on {encoder.name}: {error}",
                         "mask_encoder" if mask_encoder else "connectivity") from None
    return carried, [f"{path}, found on {encoder.name}, is carried over by stride:", *lines] if lines else []


def encoder_of_mask(path: Path, mask_encoder: str | None) -> Encoder | None:
    """The encoder that a mask file was found on, by the user's word (a name) or the mask's text; None if unknown.

    Raises InputError if the two differ in strides.
    """
    stated = None
    text = path.with_suffix(".txt")
    with contextlib.suppress(OSError):  # there need not be one
        stated = parse_encoder(text.read_text(encoding="utf-8", errors="replace"))
    if mask_encoder is None:
        return stated
    try:
        named = Encoder(mask_encoder, tuple(make_backbone(mask_encoder).strides))
    except InputError as error:
        raise InputError(f"the encoder of the mask: {error}", about="mask_encoder") from None
    if stated and stated.strides != named.strides:
        raise InputError(f"the mask {path} was found on {stated.name} with the strides {spaced(stated.strides)}, says "
                         f"{text.name}, not on {mask_encoder} with {spaced(named.strides)}; leave {mask_encoder} out",
                         about="mask_encoder")
    return named


def describe_encoder(name: str, strides: Sequence[int]) -> str:
    """ "encoder: NAME, strides 32 16 8": the line in the text of a mask, which `parse_encoder` reads."""
    return f"encoder: {name}, strides {spaced(strides)}"


def parse_encoder(text: str) -> Encoder | None:
    """The encoder that the text of a mask states, or None if it states none."""
    match = ENCODER_LINE.search(text)
    return Encoder(match[1], tuple(map(int, match[2].split()))) if match else None


def spaced(strides: Sequence[int]) -> str:
    """Strides as text."""
    return " ".join(map(str, strides))
