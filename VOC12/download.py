"""Downloading a large file: resumed, tried at several addresses, checked by md5."""
import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from utils.errors import InputError, first_line
from utils.progress import progress_bar

BLOCK = 1 << 20  # bytes read at a time
TIMEOUT = 60  # seconds without a byte


class _Refused(Exception):
    """Why an address did not give the file."""


def fetch(addresses: Sequence[str], target: str | Path, md5: str) -> Path:
    """Downloads `target` from the first of `addresses` that gives a file of that `md5` (hexadecimal).

    The bytes received are kept in `target`.part, where this call and later ones continue; a complete file with the
    right md5 is renamed to `target`. Raises InputError, with the reason of each address, if none gives the file, or if
    it cannot be written.
    """
    target = Path(target)
    part = target.with_name(target.name + ".part")
    reasons = []
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for address in addresses:
            try:
                _fetch(address, part)
                if file_md5(part) != md5:
                    part.unlink()
                    raise _Refused(f"the file received has another md5 than {md5} and was deleted")
            except _Refused as reason:
                reasons.append(f"{address}: {reason}")
                continue
            os.replace(part, target)
            return target
    except OSError as error:
        raise InputError(f"cannot write {part}: {error.strerror or error}; "
                         f"give a folder that can be written and has space left") from error
    raise InputError(f"could not download {target.name} ({'; '.join(reasons)}); run again to continue, "
                     f"give another address, or download it by other means and put it at {target}")


def file_md5(path: str | Path) -> str:
    """The md5 of a file, hexadecimal, with a progress bar. Raises OSError if it cannot be read."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file, _bar(os.path.getsize(path), f"md5 of {Path(path).name}") as bar:
        while block := file.read(BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def _fetch(address, part):
    """Downloads the rest of `part`, trying again as long as bytes arrive. Raises _Refused."""
    longest = _length(part)
    while True:
        try:
            _fetch_once(address, part)
            return
        except _Refused:
            if _length(part) <= longest:
                raise
            longest = _length(part)


def _fetch_once(address, part):
    """One request for what `part` lacks. Raises _Refused if it fails or ends early, OSError if writing fails."""
    start = _length(part)
    try:
        headers = {"User-Agent": "SparseMask", **({"Range": f"bytes={start}-"} if start else {})}
        response = urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # the range begins at the end: `part` is complete, or of another file
            return
        raise _Refused(first_line(f"HTTP {error.code} {error.reason}")) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Refused(first_line(getattr(error, "reason", None) or error)) from None
    with response:
        if not _continues(response, start):
            start = 0  # a server without ranges sends everything again
        length = response.headers.get("Content-Length")
        whole = start + int(length) if length and length.isdecimal() else None
        with open(part, "ab" if start else "wb") as file, _bar(whole, part.stem, start) as bar:
            while block := _read(response):
                file.write(block)
                bar.update(len(block))
    if whole is not None and _length(part) < whole:
        raise _Refused(f"the connection ended after {_length(part)} of {whole} bytes")


def _continues(response, start):
    """Whether the response continues at byte `start` > 0."""
    span = re.match(r"bytes (\d+)-", response.headers.get("Content-Range") or "")
    return bool(start and response.status == 206 and span and int(span[1]) == start)


def _read(response):
    try:
        return response.read(BLOCK)
    except http.client.IncompleteRead as error:
        return error.partial
    except (OSError, http.client.HTTPException) as error:
        raise _Refused(f"the connection broke: {first_line(error)}") from None


def _length(path):
    return path.stat().st_size if path.exists() else 0


def _bar(total, title, initial=0):
    return progress_bar(desc=title, total=total, initial=initial, unit="B", unit_scale=True, unit_divisor=1024)
