"""Unpacking an archive: whole or not at all, and never outside of its folder."""
import os
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from utils.errors import InputError, first_line
from utils.progress import progress_bar


def unpack(archive: str | Path, folder: str | Path) -> None:
    """Unpacks a folder of a tar archive, compressed or not, to `folder`, which does not exist yet.

    Paths in the archive are relative to the folder that the archive is in: ROOT/VOCdevkit/VOC2012 is VOCdevkit/VOC2012
    of the archive ROOT/x.tar. If this is stopped, no `folder` is left, and the next run starts again.
    Raises InputError if the archive is broken, is another one, or has a member that would be written elsewhere.
    """
    archive, folder = Path(archive), Path(folder)
    inside = folder.relative_to(archive.parent)
    temporary = archive.parent / f".unpacking_{archive.name}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # left by a run that was killed
        temporary.mkdir()
        _extract(archive, temporary)
        if not (temporary / inside).is_dir():
            raise InputError(f"{archive} has no folder {inside}; it is another archive than expected")
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary / inside, folder)
    except (tarfile.TarError, EOFError, KeyError, zlib.error) as error:  # KeyError: a link to a missing member
        raise InputError(f"cannot unpack {archive}: {first_line(error)}; download it again") from error
    except OSError as error:
        if error.errno is None:  # how gzip and bzip2 report a broken file
            raise InputError(f"cannot unpack {archive}: {error}; download it again") from error
        raise InputError(f"cannot unpack {archive}: {error.filename or folder}: {error.strerror}; "
                         f"check its permissions and the space on the disk") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _extract(archive, folder):
    """Extracts all members, with a progress bar over the archive's bytes."""
    with open(archive, "rb") as raw, tarfile.open(fileobj=raw, mode="r:*") as tar, \
            progress_bar(desc=archive.name, total=archive.stat().st_size, unit="B", unit_scale=True,
                         unit_divisor=1024) as bar:
        for member in tar:
            extract_safely(tar, member, folder)
            bar.update(raw.tell() - bar.n)
        if tar.fileobj.tell() < tar.offset + tarfile.BLOCKSIZE:  # tarfile takes a cut between two members as the end
            raise tarfile.ReadError("unexpected end of data")


def extract_safely(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Extracts one member below `folder`. Raises tarfile.TarError for a path that escapes, such a link, or a device."""
    if hasattr(tarfile, "data_filter"):
        tar.extract(member, folder, filter="data")
        return
    # Early patch versions of Python 3.10 and 3.11 have no filter. Neither archive needs a link.
    if PurePosixPath(member.name).is_absolute() or ".." in PurePosixPath(member.name).parts:
        raise tarfile.ExtractError(f"its member {member.name!r} leads out of the folder")
    if not (member.isfile() or member.isdir()):
        raise tarfile.ExtractError(f"its member {member.name!r} is neither a file nor a folder")
    tar.extract(member, folder, set_attrs=False)  # no foreign owner, no set-user bit
