"""Every bad input of bad_inputs.py gives one sentence that says what is wrong; what is only odd works."""
from bad_inputs import harmless, made_by_hostile_files, make_cases, wrong
from helpers import call


def test_bad_input_is_one_sentence_and_nothing_is_written(tmp_path):
    cases = make_cases(tmp_path)
    assert len({(case.kind, case.what) for case in cases}) == len(cases) >= 100
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    failed = []
    for case in cases:
        outcome = call(*case.command)
        if wrong(case, outcome):
            failed.append((case, outcome, wrong(case, outcome)))
    assert not failed
    assert not made_by_hostile_files(tmp_path)
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    runs = {path for path in new if tmp_path / "runs" in path.parents}  # a class beyond --n_class shows while training
    assert {path.relative_to(tmp_path).as_posix() for path in new - runs} == {"out/n5.png"}  # what was right, converted
    assert not [path for path in runs if path.suffix == ".tar"]


def test_odd_input_that_is_harmless_works(tmp_path):
    make_cases(tmp_path)
    for what, command in harmless(tmp_path):
        assert call(*command).code == 0, what
