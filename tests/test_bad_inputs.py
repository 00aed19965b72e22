"""Every bad input of bad_inputs.py gives one sentence that says what is wrong; what is only odd works."""
from pathlib import Path

import pytest

from bad_files import make_files
from bad_inputs import harmless, list_all, made_by_hostile_files, wrong
from helpers import call

HERE = Path()  # the names of the cases do not depend on where their files are


def files_in(root):
    return {path for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """(folder of the bad files, what is in it before any command has seen it)."""
    root = tmp_path_factory.mktemp("lab")
    make_files(root)
    return root, files_in(root)


@pytest.mark.parametrize("name", list_all(HERE))
def test_bad_input_is_one_sentence(lab, name):
    case = list_all(lab[0])[name]
    outcome = call(*case.command)
    assert not wrong(case, outcome), outcome


def test_after_all_of_it_nothing_hostile_was_run_and_nothing_written(lab):
    """It stands after the cases, whose files it looks at."""
    root, before = lab
    assert len(list_all(root)) >= 100
    assert not made_by_hostile_files(root)
    new = files_in(root) - before
    runs = {path for path in new if root / "runs" in path.parents}  # a class beyond --n_class shows while training
    converted = root / "out" / "n5.png"  # what was right in a list with a mistake
    assert new - runs <= {converted}
    assert not [path for path in runs if path.suffix == ".tar"]


@pytest.mark.parametrize("what", harmless(HERE))
def test_odd_input_that_is_harmless_works(lab, what):
    assert call(*harmless(lab[0])[what]).code == 0
