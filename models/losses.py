"""The losses of search and training: cross-entropy, and the regularizers of the strengths (paper section 3.3)."""
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from models import components
from models.layers import resize
from utils.errors import InputError

EPS = 1e-10
IGNORE_INDEX = 255  # the label of pixels that count nowhere


def sparsity_target(num_strengths: int) -> float:
    """alpha = min(2 / n, 0.5): the share of a stage's n connections that the sparse loss leads its mean strength to."""
    return min(2 / num_strengths, 0.5)


def sparse_loss(p: torch.Tensor, alpha: float, shares: torch.Tensor | None = None) -> torch.Tensor:
    """Sparse loss of one stage: p (any shape) in [0, 1], alpha in (0, 1) -> scalar tensor.

    The first term drives each strength to 0 or 1, the others the mean to alpha (paper section 3.3). shares: of p's
    shape, with the sum 1, that weigh this mean; equal ones if None.
    """
    entropy = -p * torch.log(p + EPS) - (1 - p) * torch.log(1 - p + EPS)
    mean = p.mean() if shares is None else (shares * p).sum()
    return entropy.mean() - alpha * torch.log(mean + EPS) - (1 - alpha) * torch.log(1 - mean + EPS)


def total_sparse_loss(strengths: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum of the stages' sparse losses; strengths: one tensor of p per stage, as the supernet draws them."""
    return sum(sparse_loss(p, sparsity_target(p.numel())) for p in strengths)


def l1_loss(strengths: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum of the stages' mean strengths: the L1 loss that the paper compares with.

    It shrinks all strengths alike, and so leaves none of them exactly at 0 or 1. (The paper does not say how its L1
    loss is scaled; the mean over a stage puts it on the scale of the sparse loss.)
    """
    return sum(p.abs().mean() for p in strengths)


# Of the strengths, one tensor of p (l+1, 2) per stage -> scalar tensor.
REGULARIZERS = {"sparse": total_sparse_loss, "l1": l1_loss}


def find_regularizer(name: str, num_stages: int = 2) -> Callable[[Sequence[torch.Tensor]], torch.Tensor]:
    """Name -> function of the strengths. Raises InputError for an unknown one.

    One of your own is called once, with strengths of num_stages stages, to see that it gives a scalar tensor.
    """
    regularizer = components.find("regularizer", name, REGULARIZERS)
    if components.is_own(name):
        try:
            value = regularizer([torch.full((l + 1, 2), 0.5) for l in range(num_stages)])
        except Exception as error:  # whatever it raises for arguments that it did not expect
            raise InputError(f"the regularizer {name!r} cannot be called with a list of strengths, one tensor (l+1, 2) "
                             f"per stage ({error}); see docs/extending.md", about="regularizer") from error
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            raise InputError(f"the regularizer {name!r} gives a {type(value).__name__}; it has to give a scalar "
                             f"tensor", about="regularizer")
    return regularizer


def pixel_cross_entropy(logits: torch.Tensor, label: torch.Tensor, pixels: torch.Tensor | None = None,
                        ignore_index: int = IGNORE_INDEX, class_weights: torch.Tensor | None = None) -> torch.Tensor:
    """Mean cross-entropy over the pixels whose label is not ignore_index, each weighted by its class.

    logits (N, classes, H, W), already of the label's size (`resize_logits`); label int64 (N, H, W). A batch without a
    counted pixel has loss 0, not NaN. class_weights (classes): all 1 if None. pixels: what to divide the sum by, where
    the label is only part of a batch; see count_pixels.
    """
    rows = logits.permute(0, 2, 3, 1).flatten(0, 2)  # a pixel's classes side by side: the fast case of the softmax
    # reduction="sum" would run in a single thread block of a GPU, forward and backward
    losses = F.cross_entropy(rows, label.flatten(), class_weights, ignore_index=ignore_index, reduction="none")
    if pixels is None:
        pixels = count_pixels(label, ignore_index, class_weights)
        pixels = pixels + (pixels == 0)
    return losses.sum() / pixels


def count_pixels(label: torch.Tensor, ignore_index: int = IGNORE_INDEX,
                 class_weights: torch.Tensor | None = None) -> torch.Tensor:
    """The pixels of a label, int64 of any shape, that count, or the sum of their weights: scalar tensor."""
    counted = label != ignore_index
    if class_weights is None:
        return counted.sum()
    return (class_weights[label.where(counted, torch.zeros_like(label))] * counted).sum()


def resize_logits(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """logits (N, classes, h, w) -> (N, classes, H, W), the size of label (N, H, W); bilinear, align_corners=True."""
    return resize(logits, label.shape[-2:])
