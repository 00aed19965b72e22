"""What the values in label files mean, where that is not the class indices with 255 for void."""
import os
import re

import numpy as np

from utils.errors import InputError
from VOC12.labels import VOID
from VOC12.lists import read_lines

MAX_VALUE = 2 ** 16 - 1  # of a label file with 16 bits
RULE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?\s*(?::|=|->|\s)\s*(\d{1,5})(?:-(\d{1,5}))?")


class LabelMap:
    """Values of label files -> class indices, or 255 for void. A value that has no rule stays what it is.

    rules: "255:1,11:255"; ranges as in "0:255,1-150:0-149" (in step) or "34-40:255" (all to one). All of them look at
    the value in the file: none sees what another has made. Raises InputError for something else, for two rules of one
    value, and for a class beyond num_classes.
    """

    def __init__(self, rules: str, num_classes: int):
        self.rules = {}  # value -> meaning
        for text in filter(None, map(str.strip, re.split("[,;]", rules))):
            for value, meaning in _values(text):
                if not (meaning < num_classes or meaning == VOID):
                    raise InputError(f"the label map says that {value} means {meaning}; give a class, 0 to "
                                     f"{num_classes - 1}, or {VOID} for void", about="label_map")
                if self.rules.setdefault(value, meaning) != meaning:
                    raise InputError(f"the label map says that {value} means both {self.rules[value]} and {meaning}; "
                                     f"give one rule for each value", about="label_map")
        if not self.rules:
            raise InputError(f"the label map {rules!r} has no rule; give rules such as 255:1", about="label_map")
        self.table = np.arange(MAX_VALUE + 1)
        self.table[list(self.rules)] = list(self.rules.values())

    def __str__(self) -> str:
        """The rules, as `rules` may be given."""
        return ",".join(f"{value}:{meaning}" for value, meaning in sorted(self.rules.items()))

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Values of any shape, 0 to 65535 -> what they mean: int64 of the same shape."""
        return self.table[values]


def _values(rule):
    """(value, meaning) of each value of a rule."""
    match = RULE.fullmatch(rule)
    first, last, low, high = (None if text is None else int(text) for text in match.groups()) if match else [None] * 4
    last = first if last is None else last
    if match is None or not first <= last <= MAX_VALUE or (high is not None and high - low != last - first):
        raise InputError(f"the label map has {rule[:60]!r}; give a file, or rules such as 255:1,11:255 (a value in the "
                         f"label files, 0 to {MAX_VALUE}, and the class that it means, or {VOID} for void) or "
                         f"1-150:0-149", about="label_map")
    return [(value, low if high is None else low + value - first) for value in range(first, last + 1)]


def read_rules(rules: str) -> str:
    """The rules for a LabelMap: the text itself, or what a file of that name has, one rule a line, with # comments."""
    if not os.path.isfile(rules):
        return rules
    return ",".join(line.partition("#")[0] for _, line in read_lines(rules, "label map"))
