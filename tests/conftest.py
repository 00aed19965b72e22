"""Fixtures of all tests."""
import pytest
import torch

from helpers import tiny_data
from models import encoder_folding
from utils.curves import Curves
from utils.run_log import RunLog

FOLDABLE = {}  # what foldable_pairs found, by the encoder's class and structure
find_foldable = encoder_folding.foldable_pairs


@pytest.fixture(autouse=True)
def independent():
    """Every test draws the same random numbers and computes in the same way, whichever ran before it."""
    torch.manual_seed(0)
    torch.set_flush_denormal(False)  # commands that ran in this process have set it


@pytest.fixture(autouse=True, scope="module")
def brief(request):
    """Leaves out of the commands that run in this process what takes most of the time of a tiny run: the drawings and
    histograms of an evaluation, and finding the foldable BNs of an encoder once more. Not in files that say
    `WHOLE = True`, where these are tested.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not getattr(request.module, "WHOLE", False):
            patch.setattr(RunLog, "_draw", lambda *_: None)
            patch.setattr(Curves, "histograms", lambda *_: None)
            patch.setattr(encoder_folding, "foldable_pairs", cached_foldable)
        yield


def cached_foldable(encoder):
    """foldable_pairs, found once for all encoders of one class and structure."""
    key = type(encoder), repr(encoder)
    if key not in FOLDABLE:
        FOLDABLE[key] = find_foldable(encoder)
    return FOLDABLE[key]


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """`tiny_data` in a temporary folder."""
    return tiny_data(tmp_path_factory.mktemp("data"))
