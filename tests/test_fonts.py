"""Legends in any script: a font that has the characters, or text that can be read without them."""
import warnings

import numpy as np
import pytest
from PIL import features

from utils import fonts
from utils.errors import InputWarning
from utils.fonts import NONCHARACTER, find_font, is_missing, legible, warn_of_illegible
from utils.pictures import overlay

LEFT_TO_RIGHT = ("cat", "кошка", "Γάτα", "Straße", "Cafe\u0301", "naïve")  # in DejaVu Sans, which matplotlib brings
RIGHT_TO_LEFT = ("قطة", "חתול")


@pytest.fixture
def no_other_fonts(monkeypatch):
    """A machine without matplotlib."""
    monkeypatch.setattr(fonts, "installed_files", list)
    for function in (find_font, legible):
        function.cache_clear()
    yield
    for function in (find_font, legible):
        function.cache_clear()


@pytest.mark.parametrize("name", LEFT_TO_RIGHT + RIGHT_TO_LEFT)
def test_the_font_has_every_character(name):
    text, font = legible(name, 3, 12)
    if name in RIGHT_TO_LEFT and not features.check("raqm"):
        assert text == "class 3"
    else:
        assert len(text) >= len(name) - 1 and not any(is_missing(c, font) for c in text)
        assert not any(is_missing(c, font) for c in "0123456789.%: ")


def test_what_no_font_has_is_numbered():
    lacking = "\U0010fffd"  # for private use
    assert legible(f"cat {lacking}\u200d", 3, 12)[0] == "3: cat"
    assert legible(lacking, 4, 12)[0] == legible(f"({lacking})", 4, 12)[0] == "class 4"
    with pytest.warns(InputWarning, match="2 class names.* '1: cat' is .*'class 2' is ") as caught:
        warn_of_illegible(["dog", f"cat {lacking}", lacking], 12)
    assert len(caught) == 1


def test_names_that_can_be_drawn_are_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_illegible(["dining  table", *LEFT_TO_RIGHT], 12)


@pytest.mark.parametrize("name", ("قطة", "猫", "кошка", "🐱"))
def test_without_other_fonts_a_number_remains(no_other_fonts, name):
    text, font = legible(name, 5, 12)
    assert text == "class 5" and not any(is_missing(c, font) for c in text)


def test_a_legend_never_consists_of_boxes(monkeypatch):
    drawn = []
    monkeypatch.setattr("utils.pictures.ImageDraw.ImageDraw.text",
                        lambda self, place, text, font, **_: drawn.append((text, font)))
    names = ["猫", "кошка", "قطة", "🐱 cat", "हिन्दी"]
    overlay(np.zeros((5, 8, 3), np.uint8), np.repeat(np.arange(5, dtype=np.uint8)[:, None], 8, 1), names)
    assert len(drawn) == 2 * 5
    for text, font in drawn:
        assert not any(is_missing(c, font) for c in text if fonts.has_glyph(c)), text
        assert NONCHARACTER not in text
