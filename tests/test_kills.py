"""The short form of tests/torture.py. A file of its own: two files are tested at a time, and this one takes long."""
import random

import pytest

from torture import torture


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["search", "train"])
def test_a_run_killed_at_random_moments_ends_as_one_never_killed(kind, tmp_path):
    done = torture(kind, 2, random.Random(1), tmp_path)
    assert done["resumes"] + done["new starts"] >= 1
