"""Networks: `FullyDenseNetwork` is searched, `SparseMask` is what the search found.

    from models import FullyDenseNetwork, SparseMask
"""
from models.sparse_mask import SparseMask
from models.supernet import FullyDenseNetwork

__all__ = ["FullyDenseNetwork", "SparseMask"]
