"""The short form of tests/torture.py, of a search: it has all the state of a training, and the strengths."""
import random

import pytest

from torture import torture


@pytest.mark.slow
def test_a_search_killed_at_random_moments_ends_as_one_never_killed(tmp_path):
    done = torture("search", 2, random.Random(1), tmp_path)
    assert done["resumes"] + done["new starts"] >= 1
