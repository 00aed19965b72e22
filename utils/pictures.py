"""Pictures for TensorBoard: labels in colour, strengths as a grid."""
import numpy as np

from VOC12.labels import colour_map

CELL = 24  # pixels of one connection in the strengths' picture


def colour_label(label):
    """Class indices, integer tensor (H, W) -> uint8 array (3, H, W) in VOC's colours."""
    return colour_map()[label.cpu().numpy().astype(np.uint8)].transpose(2, 0, 1)


def strengths_grid(strengths):
    """Strengths as uint8 (3, H, W): a row a stage (deepest on top), a column a source, encoder side first.

    White is 0, dark blue is 1; what does not exist is grey.
    """
    stages = len(strengths)
    grid = np.full((stages, 2 * stages + 1, 3), 160, dtype=np.uint8)
    for l, p in enumerate(strengths):
        p = np.asarray(p)[..., None]
        colours = (255 * (1 - p) + np.array([8, 48, 107]) * p).astype(np.uint8)
        grid[l, :l + 1] = colours[:, 0]
        grid[l, stages + 1:stages + l + 2] = colours[:, 1]
    return grid.repeat(CELL, axis=0).repeat(CELL, axis=1).transpose(2, 0, 1)


