"""Fonts for text in any script: which of the installed ones has its characters. None comes with this program."""
import functools
import unicodedata
import warnings
from collections.abc import Sequence

from PIL import ImageFont, features

from utils.errors import InputWarning

NONCHARACTER = "\uffff"  # what no font has: it is drawn as a font draws what it lacks
NUMBERS = frozenset("0123456789.%:")  # what stands beside a name in a legend
SELECTORS = frozenset(map(chr, range(0xFE00, 0xFE10)))  # variation selectors: they have no glyph of their own


@functools.lru_cache(maxsize=1024)
def legible(name: str, number: int, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """The name of the class with that number -> (text, font that has all of its characters, in pixels `size`).

    What no installed font has is left out, and the text begins with the number then: "3: cat", or "class 3" where
    nothing is left.
    """
    name = unicodedata.normalize("NFC", " ".join(name.split()))
    if font := find_font(name, size):
        return name, font
    rest = " ".join("".join(c for c in name if has_glyph(c) and find_font(c, size) or c == " ").split())
    font = find_font(rest, size)
    if font and any(map(str.isalnum, rest)):
        return f"{number}: {rest}", font
    return f"class {number}", ImageFont.load_default(size=size)


def warn_of_illegible(names: Sequence[str], size: int) -> None:
    """Warns of the class names, in the order of the classes, of which `legible` makes something else."""
    texts = [(legible(name, number, size)[0], name) for number, name in enumerate(names)]
    changed = [f"{text!r} is {name!r}" for text, name in texts
               if text != unicodedata.normalize("NFC", " ".join(name.split()))]
    if changed:
        warnings.warn(f"no font here has all characters of {len(changed)} class names; in the legends "
                      f"{', '.join(changed)}: install a font of their script (the Noto fonts have all)", InputWarning,
                      stacklevel=2)


def has_glyph(character: str) -> bool:
    """Whether a character is one to see: no joiner, mark of direction, variation selector or blank."""
    return unicodedata.category(character) not in ("Cf", "Zs") and character not in SELECTORS


@functools.lru_cache(maxsize=1024)
def find_font(text: str, size: int) -> ImageFont.FreeTypeFont | None:
    """Pillow's own font if it has all characters of the text, else an installed one that has, else None.

    Text from right to left has none where Pillow cannot set it.
    """
    letters = {c for c in text if has_glyph(c)}
    if any(unicodedata.bidirectional(c) in ("R", "AL") for c in letters) and not features.check("raqm"):
        return None
    font = ImageFont.load_default(size=size)  # Latin letters without most accents
    if letters == set(text) - {" "} and not any(is_missing(c, font) for c in letters):
        return font
    return next((font for file in installed_files() if letters | NUMBERS <= characters(file)
                 and (font := open_font(file, size)) is not None), None)


def is_missing(character: str, font: ImageFont.FreeTypeFont) -> bool:
    """Whether the font draws a character as one that it lacks."""
    drawn, missing = font.getmask(character), font.getmask(NONCHARACTER)
    return drawn.size == missing.size and bytes(drawn) == bytes(missing)


@functools.lru_cache(maxsize=1)
def installed_files() -> list[str]:
    """Files of the installed fonts, the regular face of each, and of those that matplotlib brings: its sans first."""
    try:
        from matplotlib import font_manager  # here, for it is slow to import, and optional
    except Exception:  # it is missing, or not usable with this MPLBACKEND: a legend is no reason to stop
        return []
    faces = {}
    for face in font_manager.fontManager.ttflist:
        name = face.name.replace(" ", "").lower()
        if "lastresort" in name or name == "adobeblank":  # these have a box, or nothing, for every character
            continue
        plain = face.style == "normal" and str(face.weight) in ("400", "normal", "regular", "book")
        faces.setdefault(name, []).append((not plain, face.fname))
    files = {name: min(found)[1] for name, found in faces.items()}
    return [files[name] for name in sorted(files, key=lambda name: (name != "dejavusans", "sans" not in name, name))]


@functools.lru_cache(maxsize=256)
def characters(file: str) -> frozenset[str]:
    """The characters that a font file has; none if it cannot be read."""
    from matplotlib.ft2font import FT2Font
    try:
        return frozenset(map(chr, FT2Font(file).get_charmap()))
    except (RuntimeError, OSError, ValueError):
        return frozenset()


def open_font(file: str, size: int) -> ImageFont.FreeTypeFont | None:
    """A font in this size, or None, as for colour bitmaps of another one."""
    try:
        return ImageFont.truetype(file, size)
    except OSError:
        return None
