"""Options for the names of a user's files and the meaning of their labels, and warnings about labels before a run."""
import argparse
import re
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from utils.errors import InputError, InputWarning
from VOC12.dataset import SegmentationDataset
from VOC12.label_map import LabelMap, read_rules
from VOC12.labels import VOID
from VOC12.lists import read_lines
from VOC12.naming import Naming
from VOC12.survey import Survey

MOSTLY = 0.5
SHOWN = 5  # names in a sentence


def add_file_options(parser: argparse._ActionsContainer, training: bool) -> None:
    """--im_suffix, --gt_suffix and --label_map. In training their default is nothing, otherwise the checkpoint's."""
    note = "" if training else " (default: the training's)"
    parser.add_argument("--im_suffix", metavar="S", help="what the names of the images end with, for example "
                        f"_leftImg8bit.png; by default .jpg, .png and other usual suffixes{note}")
    parser.add_argument("--gt_suffix", metavar="S", help="what the names of the labels end with, for example "
                        f"_gtFine_labelTrainIds.png; by default .png, .bmp, .tif or .gif{note}")
    parser.add_argument("--label_map", metavar="RULES", help="what values in the label files mean, for example "
                        "255:1,11:255 (255 is class 1, and 11 is void) or 0:255,1-150:0-149; or a file with such rules"
                        + ("" if training else "; none for none (default: the training's)"))


def naming_of(im_suffix: str | None, gt_suffix: str | None, stored: Mapping = {}) -> Naming:
    """--im_suffix and --gt_suffix; where one was not given, that of the stored settings."""
    suffixes = []
    for name, given in (("im_suffix", im_suffix), ("gt_suffix", gt_suffix)):
        suffix = given or stored.get(name)
        suffixes.append(suffix if isinstance(suffix, str) else "")
    return Naming(*suffixes)


def label_map_of(rules: str | None, num_classes: int, stored: Mapping = {}) -> LabelMap | None:
    """--label_map; if it was not given, that of the stored settings."""
    if rules:
        return None if rules == "none" else LabelMap(read_rules(rules), num_classes)
    stored_rules = stored.get("label_map")
    return LabelMap(stored_rules, num_classes) if stored_rules and isinstance(stored_rules, str) else None


def class_weights_of(option: str | None, class_names: Sequence[str],
                     count: Callable[[], Survey]) -> list[float] | None:
    """--class_weights: one weight a class, or None. count: () -> Survey of all labels, called for "balanced"."""
    if option is None:
        return None
    if option == "balanced":
        return [round(float(weight), 6) for weight in count().balanced_weights()]
    weights = []
    for number, line in read_lines(option, "file of class weights"):
        name, text = re.fullmatch(r"(.*?)[\s,;:]*([^\s,;:]*)", line).groups()
        try:
            weights.append(float(text))
        except ValueError:
            raise InputError(f"{option}, line {number}: {line[:60]!r} has no number at its end; give one weight a "
                             f"line, after the name of the class or alone", about="class_weights") from None
        if name and len(weights) <= len(class_names) and name != class_names[len(weights) - 1]:
            raise InputError(f"{option}, line {number} has the class {name!r}, but class {len(weights) - 1} is "
                             f"{class_names[len(weights) - 1]!r}; give the weights in the order of the classes",
                             about="class_weights")
    if len(weights) != len(class_names) or not all(0 <= w < np.inf for w in weights) or not any(weights):
        raise InputError(f"{option} has {len(weights)} weights for {len(class_names)} classes; give one for each, from "
                         f"0 up and not all of them 0", about="class_weights")
    return weights


def warn_of_labels(found: Survey, class_names: Sequence[str], has_map: bool) -> None:
    """Says what in the training labels may not mean what the user thinks, and what to do then.

    Raises InputError if they have nothing to learn from.
    """
    which = "the training labels" if found.is_complete else \
        f"the {found.looked_at} training labels that were sampled, of {found.total:,},"
    if found.is_complete and not found.classes[:VOID].any():
        raise InputError(f"{which} contain no pixel of a class, only void ({VOID}), so there is nothing to learn; say "
                         f"what their values mean with --label_map")
    if found.absent:
        warn(f"{which} have no pixel of {listed(found.absent, class_names)}: {advice(found, has_map)}")
    if found.void_share > MOSTLY:
        warn(f"{which} are void ({VOID}) in {100 * found.void_share:.0f} % of their pixels, and the rest alone is "
             f"learned from: if {VOID} is a class, add --label_map {VOID}:CLASS")
    elif found.only_void > MOSTLY * found.looked_at:
        warn(f"{which} have {found.only_void} images that are void ({VOID}) everywhere, which teach nothing: leave "
             f"them out of the list, or say what their values mean with --label_map")


def warn_of_absent(absent: Sequence[int], class_names: Sequence[str]) -> None:
    """Says which classes did not occur in the first epoch, in which the network sees every training image."""
    if absent:
        warn(f"in the first epoch no pixel of {listed(absent, class_names)} was seen: what does not occur cannot be "
             f"learned; if it has another value in the files, say so with --label_map")


def listed(classes: Sequence[int], class_names: Sequence[str]) -> str:
    """Classes by index and name, the first ones where there are many."""
    names = [f"{i}" if class_names[i] == f"class {i}" else f"{i} ({class_names[i]})" for i in classes[:SHOWN]]
    more = f" and {len(classes) - SHOWN} more" if len(classes) > SHOWN else ""
    return f"{'class' if len(classes) == 1 else 'the classes'} {', '.join(names)}{more}"


def warn_of_repeats(list_path: str, dataset: SegmentationDataset, consequence: str) -> None:
    """Says that images are listed more than once."""
    if dataset.num_repeated:
        warn(f"{list_path} lists images more than once ({dataset.num_repeated} of its entries repeat an earlier one); "
             f"{consequence}")


def advice(found: Survey, has_map: bool) -> str:
    """What to do about absent classes."""
    values = np.flatnonzero(found.values).tolist()
    highest = max(set(range(found.num_classes)) - set(found.absent), default=0)
    if not has_map and VOID in values and set(values) <= {0, VOID}:
        return f"their values are {', '.join(map(str, values))}, and {VOID} is void; if {VOID} is class 1, add " \
               f"--label_map {VOID}:1"
    if not has_map and 0 not in values and highest:
        return f"if the classes begin at 1 in the files, add --label_map 1-{highest}:0-{highest - 1}"
    if highest < found.num_classes - 1:
        return f"if there are only {highest + 1} classes, give --n_class {highest + 1}; if they have other values in " \
               f"the files, say so with --label_map"
    return "they cannot be learned; if they have other values in the files, say so with --label_map"


def warn(message: str) -> None:
    """Issues an InputWarning."""
    warnings.warn(message, InputWarning, stacklevel=3)
