"""For torch.hub: a network of this repository in two lines elsewhere. See README.md."""
dependencies = ["torch", "numpy"]


def sparse_mask(connectivity: str = "published", checkpoint: str | None = None, num_classes: int = 21,
                depth: int = 64, backbone: str | None = None, connection: str | None = None, fusion: str | None = None,
                head: str | None = None, mask_encoder: str | None = None):
    """A SparseMask in evaluation mode: image (N, 3, H, W), normalized -> logits (N, num_classes, H/2, W/2).

    connectivity: "published", "fcn", "unet", "full", or a mask file; random weights. One that was found on another
    encoder, which its text or mask_encoder names, is carried over (docs/method.md). checkpoint: the file of a training
    instead, which defines all the rest. backbone, connection, fusion, head: the parts by name; of a checkpoint only
    those of your own (package.module:factory), which are imported.

    Raises ValueError (InputError) for what cannot be read.
    """
    from models import SparseMask
    from models.backbones import make_backbone
    from models.transfer import load_for_encoder
    from utils.checkpoint import read_checkpoint
    parts = {"backbone": backbone, "connection": connection, "fusion": fusion, "head": head}
    parts = {kind: name for kind, name in parts.items() if name is not None}
    if checkpoint is not None:
        found = read_checkpoint(checkpoint).require("train")
        found.require_parts(parts)
        return found.build().eval()
    strides = make_backbone(parts.get("backbone", "mobilenet_v2")).strides
    mask, _ = load_for_encoder(connectivity, strides, mask_encoder)
    return SparseMask(mask, depth=depth, num_classes=num_classes, **parts).eval()
