"""The test-time augmentation that --scales and --flip ask for."""
import argparse
from collections.abc import Callable, Sequence
from typing import NamedTuple

from models.inference import TestTimeAugmentation
from utils.errors import InputError

MIN_SCALE, MAX_SCALE = 0.1, 4.0


def add_augmentation_options(parser: argparse._ActionsContainer) -> None:
    """--scales and --flip, the test-time augmentation of the paper's test protocol."""
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], metavar="S",
                        help="average the probabilities over these image sizes (paper: 0.5 0.75 1 1.25 1.5 1.75)")
    parser.add_argument("--flip", action="store_true", help="average over the mirrored image too")


class Augmentation(NamedTuple):
    """The test-time augmentation that --scales and --flip ask for; `description` is empty for a plain single pass."""
    scales: tuple
    flip: bool

    @property
    def description(self) -> str:
        """The augmentation in words, to stand beside a result."""
        parts = [f"the scales {' '.join(f'{s:g}' for s in self.scales)}"] if self.scales != (1.0,) else []
        parts += ["the mirrored image"] if self.flip else []
        return f" (probabilities averaged over {' and '.join(parts)})" if parts else ""

    def wrap(self, forward: Callable) -> Callable:
        """The callable with test-time augmentation, or `forward` itself where there is nothing to average."""
        return TestTimeAugmentation(forward, self.scales, self.flip) if self.description else forward


def augmentation_of(scales: Sequence[float], flip: bool) -> Augmentation:
    """--scales and --flip, checked."""
    for scale in scales:
        if not MIN_SCALE <= scale <= MAX_SCALE:
            raise InputError(f"--scales has {scale:g}; give numbers from {MIN_SCALE} to {MAX_SCALE}")
    return Augmentation(tuple(dict.fromkeys(scales)), flip)
