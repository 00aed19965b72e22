"""The two losses: spec section 5."""
import torch
import torch.nn.functional as F

from models.fusion import resize
from VOC12.labels import VOID

EPS = 1e-10


def sparsity_target(num_strengths):
    """alpha = min(2 / n, 0.5): the share of a stage's n connections that the sparse loss leads its mean strength to."""
    return min(2 / num_strengths, 0.5)


def sparse_loss(p, alpha):
    """Sparse loss of one stage: p (any shape) in [0, 1], alpha in (0, 1) -> scalar tensor.

    The first term drives each strength to 0 or 1, the others the mean to alpha (paper section 3.3).
    """
    entropy = -p * torch.log(p + EPS) - (1 - p) * torch.log(1 - p + EPS)
    mean = p.mean()
    return entropy.mean() - alpha * torch.log(mean + EPS) - (1 - alpha) * torch.log(1 - mean + EPS)


def total_sparse_loss(strengths):
    """Sum of the stages' sparse losses; strengths: one tensor of p a stage, as the supernet draws them."""
    return sum(sparse_loss(p, sparsity_target(p.numel())) for p in strengths)


def pixel_cross_entropy(logits, label, pixels=None):
    """Mean cross-entropy over the pixels that are not void.

    logits (N, classes, H, W), already of the label's size (`resize_logits`); label int64 (N, H, W). A batch of void
    alone has loss 0, not NaN. pixels: what to divide the sum by, where the label is only part of a batch.
    """
    rows = logits.permute(0, 2, 3, 1).flatten(0, 2)  # a pixel's classes side by side: the fast case of the softmax
    total = F.cross_entropy(rows, label.flatten(), ignore_index=VOID, reduction="sum")
    return total / ((label != VOID).sum().clamp(min=1) if pixels is None else pixels)


def resize_logits(logits, label):
    """logits (N, classes, h, w) -> (N, classes, H, W), the size of label (N, H, W); bilinear, align_corners=True."""
    return resize(logits, label.shape[-2:])
