"""Reading lists of names."""
import codecs

import pytest

from utils.errors import InputError
from VOC12.lists import read_list


@pytest.mark.parametrize("raw", [
    b"b\na\n",
    b"b\r\na\r\n",
    b"\xef\xbb\xbfb\na",
    b"\n  b \n\n\ta\t\n \n",
    b"b\na\nb\na\n",
    "b\na".encode("utf-16"), "b\na".encode("utf-32"), codecs.BOM_UTF16_BE + "b\na".encode("utf-16-be"),
    b"b\xc2\xa0\n./a",
])
def test_names_in_order_once(tmp_path, raw):
    path = tmp_path / "list.txt"
    path.write_bytes(raw)
    assert read_list(path) == ["b", "a"]
    assert read_list(str(path)) == ["b", "a"]


def test_subfolders_and_odd_names_are_fine(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("city/a\n2007_000032\na..b\nzürich 1\n", encoding="utf-8")
    assert read_list(path) == ["city/a", "2007_000032", "a..b", "zürich 1"]


@pytest.mark.parametrize("name", ["/etc/passwd", "../a", "a/../../b", "..", "..\\a", "C:\\a", "//server/a", "a\0b"])
def test_names_that_lead_out_are_refused(tmp_path, name):
    path = tmp_path / "list.txt"
    path.write_text(f"fine\n{name}\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 2"):
        read_list(path)


@pytest.mark.parametrize("raw, message", [
    (b"", "empty"), (b"\n \r\n", "empty"), (b"\xe9\n", "not UTF-8"), (b"\x89PNG\r\n", "not UTF-8"),
])
def test_wrong_files(tmp_path, raw, message):
    path = tmp_path / "list.txt"
    path.write_bytes(raw)
    with pytest.raises(InputError, match=message) as error:
        read_list(path)
    assert str(path) in str(error.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_list(tmp_path / "none.txt")
    with pytest.raises(InputError, match="folder"):
        read_list(tmp_path)
