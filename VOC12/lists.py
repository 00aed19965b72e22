"""Text files that a user gives: lists of names such as VOC's and SBD's `train.txt`, and others of one entry a line."""
import codecs
import posixpath
import unicodedata
from pathlib import Path

from utils.errors import InputError
from utils.files import require_file

# The longer ones first: that of UTF-32 begins with that of UTF-16.
BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
                    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def read_lines(path: str | Path, what: str) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, without the blanks around them: list of (number from 1, line).

    The encoding is that of the byte order mark, otherwise UTF-8. Raises InputError if the file is missing or is no such
    text; `what` names it, e.g. "list of class names".
    """
    path = require_file(path, what)
    try:
        content = path.read_bytes()
        encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8")
        lines = content.decode(encoding).splitlines()
    except UnicodeDecodeError:
        raise InputError(f"the {what} {path} is not UTF-8 text, and no byte order mark declares another encoding; "
                         f"save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"the {what} {path} cannot be read: {error.strerror or error}; check its permissions") \
            from error
    return [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]


def read_list(path: str | Path) -> list[str]:
    """The names of a text file, one a line: a list of strings in the file's order, each name once.

    Blank lines, blanks around a name, a byte order mark and Windows line ends and backslashes are ignored.
    Raises InputError if the file is missing, is not text, has no name, or has one that leads out of the folder in which
    it is looked up.
    """
    return list(dict.fromkeys(relative_name(line, where) for where, line in read_entries(path)))


def read_entries(path: str | Path) -> list[tuple[str, str]]:
    """The entries of a list as they stand there, repeated ones too: list of (place, for errors; entry).

    Raises InputError if the file is missing, is not text or has no entry.
    """
    entries = [(f"{path}, line {number}", line) for number, line in read_lines(path, "list")]
    if not entries:
        raise InputError(f"the list {path} is empty; give a text file with one name a line")
    for where, line in entries:
        if any(unicodedata.category(character) == "Cc" and character != "\t" for character in line):
            raise InputError(f"{where}: {line[:100]!r} is not a file name; give a text file with one name a line")
    return entries


def relative_name(name: str, where: str) -> str:
    """A name as a relative path with slashes. Raises InputError if it leads out of the folder that it is relative to.
    """
    path = normal_path(name)
    if path.startswith("/") or path.split("/")[0] == ".." or path[1:2] == ":":
        raise InputError(f"{where}: the name {name!r} leads out of the data folder; "
                         f"give plain names such as 2007_000032, one a line")
    return path


def normal_path(name: str) -> str:
    """A path with slashes, and without "." and "..", save at its start."""
    return posixpath.normpath(name.replace("\\", "/"))
