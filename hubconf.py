"""For torch.hub: a network of this repository in two lines elsewhere. See README.md."""
dependencies = ["torch", "numpy"]


def sparse_mask(connectivity="published", checkpoint=None, num_classes=21, depth=64, backbone="mobilenet_v2"):
    """A SparseMask in evaluation mode: image (N, 3, H, W), normalized -> logits (N, num_classes, H/2, W/2).

    connectivity: "published", "fcn", "unet", "full", or a mask file; random weights. checkpoint: the file of a training
    instead, which says all the rest itself. Raises ValueError (InputError) for what cannot be read.
    """
    from models import SparseMask
    from models.connectivity import load
    from utils.checkpoint import read_checkpoint
    if checkpoint is not None:
        return read_checkpoint(checkpoint).require("train").build().eval()
    from models.backbones import make_backbone
    mask = load(connectivity, len(make_backbone(backbone).channels))
    return SparseMask(mask, backbone, depth, num_classes).eval()
