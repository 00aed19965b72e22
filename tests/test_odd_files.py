"""Odd files of ordinary users, see odd_files.py: read as they should be, or refused in a sentence that helps."""
import warnings

import numpy as np
import pytest
from PIL import Image

from helpers import ROOT, call
from odd_files import CASES, CONVERTED, LABEL, NUM_CLASSES, REFUSED, prepare, table
from utils.errors import InputError
from VOC12.dataset import SegmentationDataset
from VOC12.image_files import ImageFiles
from VOC12.label_map import LabelMap
from VOC12.naming import Naming
from VOC12.transforms import EvalTransform

LEVELS = 40  # of 255: what a JPEG may change at an edge


def cases(choose=lambda case: True):
    """Parametrizes a test with the cases that `choose` chooses."""
    return pytest.mark.parametrize("case", list(filter(choose, CASES)), ids=lambda case: case.what, indirect=True)


@pytest.fixture
def case(request, tmp_path):
    """A case whose files are there."""
    prepare(tmp_path)
    request.param.write(tmp_path)
    return request.param


def load(root, options):
    """The one Sample of a dataset, and what was said."""
    rules = options.get("rules")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        dataset = SegmentationDataset(root / "img", root / "gt", root / "list.txt", NUM_CLASSES, EvalTransform(1),
                                      naming=Naming(*options.get("naming", ())),
                                      label_map=LabelMap(rules, NUM_CLASSES) if rules else None)
        return dataset[0], " ".join(str(warning.message) for warning in said)


@cases()
def test_training_and_evaluation(case, tmp_path):
    if case.label is None:
        with pytest.raises(InputError, match=case.said or ""):
            load(tmp_path, case.options)
        return
    sample, said = load(tmp_path, case.options)
    assert (case.said or "") in said and bool(said) == bool(case.said)
    assert np.array_equal(sample.label.numpy(), case.label)
    counted = case.label != 255
    assert np.abs(sample.image.numpy().astype(int) - case.image)[counted].max() <= LEVELS


@cases(lambda case: case.predict)
def test_predict(case, tmp_path):
    files = sorted((tmp_path / "img").iterdir())
    images = ImageFiles(files, EvalTransform(1))
    if case.image is None:
        with pytest.raises(InputError, match=case.said):
            images[0]
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sample = images[0]
    expected = case.image if sample.image.shape == case.image.shape else np.rot90(case.image, -1)  # no label to fit
    seen = sample.label.numpy() != 255
    assert seen.mean() >= 0.75 and np.abs(sample.image.numpy().astype(int) - expected)[seen].max() <= LEVELS


@cases(lambda case: case.convert)
def test_conversion(case, tmp_path):
    options = []
    if case.colours:
        (tmp_path / "colours.txt").write_text(case.colours)
        options = ["--colours", tmp_path / "colours.txt"]
    outcome = call("VOC12/convert_labels.py", tmp_path / "gt", tmp_path / "list.txt", tmp_path / "out", "--workers", 1,
                   *options)
    assert outcome.code == (1 if case.convert == REFUSED else 0)
    if case.convert == CONVERTED:
        expected = LABEL if case.label is not None or case.colours else None
        converted = [np.array(Image.open(path)) for path in (tmp_path / "out").rglob("*.png")]
        assert len(converted) == 1 and (expected is None or np.array_equal(converted[0], expected))


def test_the_files_are_small_and_the_table_is_in_the_documentation(tmp_path):
    for number, case in enumerate(CASES):
        root = tmp_path / str(number)
        root.mkdir()
        prepare(root)
        case.write(root)
        assert all(path.stat().st_size < 8192 for path in root.rglob("*") if path.is_file())
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    assert "\n".join(table()) in text
