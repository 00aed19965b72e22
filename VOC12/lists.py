"""Lists of names, one a line, as VOC's and SBD's `train.txt` and `val.txt`."""
from pathlib import Path, PurePosixPath

from utils.errors import InputError
from utils.files import require_file


def read_list(path: str | Path) -> list[str]:
    """The names of a text file, one a line, without suffix: a list of strings in the file's order, each name once.

    Blank lines, blanks around a name, a byte order mark and Windows line ends are ignored.
    Raises InputError if the file is missing, is not UTF-8 text, has no name, or has one that leads out of the folder
    in which it is looked up.
    """
    path = require_file(path, "list")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"the list {path} is not UTF-8 text; give a text file with one name a line") from None
    except OSError as error:
        raise InputError(f"the list {path} cannot be read: {error.strerror or error}; check its permissions") from error
    names = {}  # a dict keeps the order
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if name:
            _check_name(name, f"{path}, line {number}")
            names[name] = None
    if not names:
        raise InputError(f"the list {path} is empty; give a text file with one name a line")
    return list(names)


def _check_name(name, where):
    """Raises InputError if folder / name could lie outside of the folder, or be no file name at all."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not name.isprintable():
        raise InputError(f"{where}: {name!r} is not a file name; give a text file with one name a line")
    if parts[:1] == ("/",) or parts[:1] == ("//",) or ".." in parts or name[1:2] == ":":
        raise InputError(f"{where}: the name {name!r} leads out of the data folder; "
                         f"give plain names such as 2007_000032, one a line")
