"""indices_of: what the pixels of a label store, in every mode and number of bits that label files come in."""
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from utils.errors import InputError
from VOC12.index_png import indices_of

RGB, GREY_ALPHA, RGBA = 2, 4, 6  # PNG's colour types
INDICES = np.array([[0, 1, 2, 3], [29, 100, 254, 255]], np.uint8)


def save_sixteen_bits(path, values, colour_type):
    """A PNG with 16 bits a sample, which Pillow writes for grey images only. values: (H, W, channels)."""
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
                     + chunk(b"IEND", b""))


def read(path):
    with Image.open(path) as image:
        image.load()
        return indices_of(image, path)


def palette_image(values):
    image = Image.fromarray(values)
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    return image


def channels(values, alpha):
    return Image.fromarray(np.dstack([values] * 3 + [np.full_like(values, 77)] * alpha))


def grey_alpha(values):
    return Image.merge("LA", [Image.fromarray(values), Image.fromarray(255 - values)])


@pytest.mark.parametrize("kind", [Image.fromarray, palette_image, grey_alpha, lambda v: channels(v, 0),
                                  lambda v: channels(v, 1), lambda v: Image.fromarray(v.astype(np.uint16))])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_indices_of_every_mode(tmp_path, kind, suffix):
    kind(INDICES).save(tmp_path / f"a.{suffix}")
    found = read(tmp_path / f"a.{suffix}")
    assert found.dtype.kind == "u" and np.array_equal(found, INDICES)


@pytest.mark.parametrize("kind", [Image.fromarray, palette_image, lambda v: channels(v, 0)])
def test_indices_of_bmp(tmp_path, kind):
    kind(INDICES).save(tmp_path / "a.bmp")
    assert np.array_equal(read(tmp_path / "a.bmp"), INDICES)


def test_indices_of_few_bits(tmp_path):
    values = np.array([[0, 1, 1, 0]], np.uint8)
    Image.fromarray(values.astype(bool)).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png").tolist() == values.tolist()
    palette_image(values).save(tmp_path / "b.png", bits=1)
    assert read(tmp_path / "b.png").tolist() == values.tolist()
    four = b"II*\0\x08\0\0\0" + struct.pack("<H", 7) + b"".join(  # a TIFF with two pixels of 4 bits, the values 2 and 9
        struct.pack("<HHII", tag, 3, 1, value) for tag, value in
        ((256, 2), (257, 1), (258, 4), (259, 1), (262, 1), (273, 98), (279, 1))) + bytes(4) + b"\x29"
    (tmp_path / "c.tif").write_bytes(four)
    assert read(tmp_path / "c.tif").tolist() == [[2, 9]]


@pytest.mark.parametrize("colour_type, alpha", [(RGB, 0), (RGBA, 1)])
def test_indices_of_sixteen_bits_in_several_channels(tmp_path, colour_type, alpha):
    """Pillow reads the high bytes of such samples alone: 0 wherever the index is below 256."""
    values = INDICES.astype(np.uint16) + np.uint16([[0], [256]])
    save_sixteen_bits(tmp_path / "a.png", np.dstack([values] * 3 + [values * 0 + 65535] * alpha), colour_type)
    assert np.array_equal(read(tmp_path / "a.png"), values)


def test_what_cannot_be_read_is_never_zeros(tmp_path):
    values = np.dstack([INDICES, INDICES]).astype(np.uint16)
    save_sixteen_bits(tmp_path / "a.png", values, GREY_ALPHA)
    with pytest.raises(InputError, match="a.png: .* several channels of 16 bits"):
        read(tmp_path / "a.png")
    Image.fromarray(INDICES.astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="a.tif: the mode .* F;"):
        read(tmp_path / "a.tif")


@pytest.mark.parametrize("alpha", [0, 1])
def test_colours_are_no_indices(tmp_path, alpha):
    colours = np.array(channels(INDICES, alpha))
    colours[1, 2, 1] = 7
    Image.fromarray(colours).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a.png has the mode .* \(254, 7, 254\) at row 1, column 2; .*convert_labels"):
        read(tmp_path / "a.png")
