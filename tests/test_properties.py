"""Properties of pruning and of connectivities that hold for any strengths: hypothesis seeks counter-examples."""
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from helpers import is_network
from models import connectivity as conn
from models import pruning
from utils.errors import InputError

THRESHOLD = 1e-3
# Mostly 0 and 1, as a search leaves them, and with the threshold itself and its neighbours.
VALUES = st.sampled_from([0.0, 0.0, 0.0, 1e-4, THRESHOLD, np.nextafter(THRESHOLD, 1), 0.02, 0.5, 1.0])


@st.composite
def strengths(draw):
    """Strengths of 1 to 9 stages."""
    num = draw(st.integers(1, 9))
    return [np.array(draw(st.lists(VALUES, min_size=2 * (l + 1), max_size=2 * (l + 1)))).reshape(l + 1, 2)
            for l in range(num)]


@st.composite
def connectivities(draw):
    """Connectivities that a network can be built from: pruned, some with one more connection of the finest stage."""
    kept = pruning.prune(draw(strengths()), THRESHOLD)
    if draw(st.booleans()):
        kept[-1, draw(st.integers(0, len(kept) - 1)), 0] = True
    if not kept[-1].any():
        kept[-1, 0, 0] = True
    return kept


@settings(max_examples=400, deadline=None)
@given(strengths())
def test_pruning_leaves_a_network(p):
    assume(is_network(p, THRESHOLD))
    kept = pruning.prune(p, THRESHOLD)
    pruning.require_input(kept, p, THRESHOLD)
    assert (conn.check(kept, len(p)) == kept).all()  # no stage reads one that has no input
    assert conn.unread_stages(kept) == []


@settings(max_examples=100, deadline=None)
@given(strengths(), st.sampled_from([0.0, 1e-4, THRESHOLD]))
def test_without_an_input_of_the_finest_stage_nothing_is_left(p, weak):
    p[-1] = np.minimum(p[-1], weak)
    kept = pruning.prune(p, THRESHOLD)
    assert not kept.any()
    with pytest.raises(InputError, match="nothing is left"):
        pruning.require_input(kept, p, THRESHOLD)


@settings(max_examples=400, deadline=None)
@given(strengths())
def test_nothing_under_the_threshold_is_kept_unless_it_was_rerouted(p):
    """Step 2 makes what read a duplicate read the stage that it duplicates: then, and only then, p is not asked."""
    kept = pruning.prune(p, THRESHOLD)
    first = pruning.keep_used(p, THRESHOLD)
    for l, source, side in np.argwhere(kept):
        if p[l][source, side] <= THRESHOLD:
            assert side == 1 and source > 0
            duplicates = [other for other in range(source, l) if first[l, other + 1, 1]]
            assert duplicates, (l, source)  # it read a finer stage, which has become this one


@settings(max_examples=200, deadline=None)
@given(strengths(), st.sampled_from([0.0, 1e-3, 0.1, 0.7]))
def test_pruning_changes_neither_its_input_nor_its_mind(p, threshold):
    before = [a.copy() for a in p]
    assert (pruning.prune(p, threshold) == pruning.prune(p, threshold)).all()
    assert all((a == b).all() for a, b in zip(before, p, strict=True))


@settings(max_examples=300, deadline=None)
@given(connectivities())
def test_text_and_files_give_a_connectivity_back(kept):
    assert (conn.parse(conn.describe(kept)) == kept).all()
    with tempfile.TemporaryDirectory() as folder:
        array, text = Path(folder) / "mask.npy", Path(folder) / "mask.txt"
        conn.save(array, kept)
        text.write_text(conn.describe(kept))
        for path in (array, text):
            assert (conn.load(path, len(kept)) == kept).all()


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200) | st.from_regex(r"(D\[\d{0,4}\] ([EDG](\[\d{0,3}\])? ?)*\n){1,5}", fullmatch=True))
def test_any_text_is_a_connectivity_or_one_sentence(text):
    try:
        kept = conn.parse(text)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert kept.dtype == bool and kept.shape == (len(kept), len(kept), 2) and len(kept) <= conn.MAX_STAGES
