"""convert_labels.py on labels as people have them: any number of classes, formats, suffixes, and colours of a list."""
import codecs

import numpy as np
import pytest
from PIL import Image

from helpers import call
from utils.colour_map import colour_map
from utils.errors import InputError
from VOC12.colours import labels_of_colours, read_colours
from VOC12.labels import load_class_names

SCRIPT = "VOC12/convert_labels.py"
OWN = np.array([[10, 10, 10], [200, 30, 30], [30, 30, 200]], np.uint8)
LISTS = {  # the same three classes
    "comma": "ground,10,10,10\nred roof,200,30,30\nblue,30,30,200\n",
    "labelmap.txt": "# label:color_rgb:parts:actions\nground:10,10,10::\nred roof:200,30,30:a,b:c\nblue:30,30,200::\n",
    "header": "name,r,g,b\nground,10,10,10\nred roof,200,30,30\nblue,30,30,200\n",
    "semicolon": "# mine\nground; 10; 10; 10\n\nred roof; 200; 30; 30 # of tiles\nblue; 30; 30; 200\n",
    "blanks": "ground 10 10 10\nred roof 200 30 30\nblue 30 30 200\n",
    "tabs, colour first": "10 10 10\tground\n200 30 30\tred roof\n30 30 200\tblue\n",
    "hex": "Class,Color\nground,#0a0a0a\nred roof,#C81E1E\nblue,#1e1ec8\n",
    "hex and blanks": "ground #0a0a0a\nred roof #C81E1E\nblue #1e1ec8",
    "quotes": '"ground","10","10","10"\n"red roof","200","30","30"\n"blue","30","30","200"\n',
    "index first": "id,name,R,G,B\n2,blue,30,30,200\n0,ground,10,10,10\n1,red roof,200,30,30\n",
    "void between": "ground,10,10,10\nVoid,0,0,0\nred roof,200,30,30\nignore,1,1,1\nblue,30,30,200\n",
}


def indices(seed=0, classes=3, shape=(9, 12)):
    return np.random.default_rng(seed).integers(0, classes, shape).astype(np.uint8)


def folder_of(root, images, suffix=".png"):
    """root/src with the images n0, n1, ..., and root/list.txt."""
    (root / "src").mkdir()
    for number, image in enumerate(images):
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(root / "src" / f"n{number}{suffix}")
    (root / "list.txt").write_text("".join(f"n{number}\n" for number in range(len(images))))
    return root


def convert(root, *options):
    return call(SCRIPT, root / "src", root / "list.txt", root / "out", *options)


def written(root, number=0):
    with Image.open(root / "out" / f"n{number}.png") as image:
        assert image.mode == "P"
        return np.asarray(image)


# --- indices

@pytest.mark.parametrize("store", [lambda v: v, lambda v: np.dstack([v] * 3), lambda v: np.dstack([v] * 4),
                                   lambda v: v.astype(np.uint16)], ids=["grey", "RGB", "RGBA", "16 bits"])
def test_any_number_of_classes(tmp_path, store):
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    folder_of(tmp_path, [store(values)])
    outcome = convert(tmp_path)
    assert outcome.code == 0 and "--n_class, must be 255" in outcome.text, outcome.text
    assert np.array_equal(written(tmp_path), values)
    outcome = convert(tmp_path, "--n_class", 200)  # other options: the file is not taken for converted
    assert outcome.code == 1 and "row 12, column 8 has the value 200; expected 0 to 199, or 255" in outcome.text


def test_sixteen_bits_beyond_eight(tmp_path):
    folder_of(tmp_path, [np.array([[0, 7], [300, 1]], np.uint16), indices(1)])
    outcome = convert(tmp_path)
    assert outcome.code == 1 and "n0.png: the pixel at row 1, column 0 has the value 300" in outcome.text
    assert np.array_equal(written(tmp_path, 1), indices(1))


@pytest.mark.parametrize("suffix", [".tif", ".TIFF", ".bmp", ".PNG"])
def test_suffixes_and_formats(tmp_path, suffix):
    folder_of(tmp_path, [indices(classes=30), np.dstack([indices(1, 30)] * 3)], suffix)
    assert convert(tmp_path).code == 0
    assert np.array_equal(written(tmp_path), indices(classes=30))
    assert np.array_equal(written(tmp_path, 1), indices(1, 30))


def test_a_name_with_a_suffix_of_a_dataset(tmp_path):
    folder_of(tmp_path, [indices()], "_gtFine_labelIds.png")
    assert "no such file" in convert(tmp_path).text
    assert convert(tmp_path, "--gt_suffix", "_gtFine_labelIds.png").code == 0
    assert np.array_equal(written(tmp_path), indices())


def test_gif_is_read_by_its_colours(tmp_path):
    """Programs that write GIFs renumber the palette: Pillow too."""
    image = Image.fromarray(indices() * 7)
    image.putpalette(colour_map().tobytes())  # indices 0, 7, 14 in VOC's colours
    folder_of(tmp_path, [image, Image.fromarray(indices() * 7)], ".gif")
    assert convert(tmp_path).code == 0
    assert np.array_equal(written(tmp_path), indices() * 7) and np.array_equal(written(tmp_path, 1), indices() * 7)


def test_grey_in_rgb_that_may_be_a_colour_of_voc(tmp_path):
    cars = np.where(indices(classes=2), 7, 0).astype(np.uint8)
    folder_of(tmp_path, [colour_map()[cars], np.zeros((9, 12, 3), np.uint8)])
    outcome = convert(tmp_path)
    assert outcome.code == 1 and "n0.png: the image has only" in outcome.text and "n1.png" not in outcome.text
    assert convert(tmp_path, "--colours", "voc").code == 0 and np.array_equal(written(tmp_path), cars)
    assert convert(tmp_path, "--colours", "none").code == 0 and np.array_equal(written(tmp_path), cars // 7 * 128)


def test_masks_of_0_and_255_are_not_passed_over(tmp_path):
    masks = indices(classes=2) * 255
    folder_of(tmp_path, [masks])
    outcome = convert(tmp_path)
    assert outcome.code == 0 and "warning: " in outcome.text and "255 is void" in outcome.text
    (tmp_path / "colours.txt").write_text("back,0,0,0\nfront,255,255,255\n")
    outcome = convert(tmp_path, "--colours", tmp_path / "colours.txt")
    assert outcome.code == 0 and "warning" not in outcome.text and np.array_equal(written(tmp_path), masks // 255)


def test_palettes_that_contradict_each_other(tmp_path):
    """As of a program that reduces painted labels to a palette, file by file."""
    images = [Image.fromarray(indices()) for _ in range(2)]
    images[0].putpalette(OWN.tobytes())
    images[1].putpalette(OWN[::-1].tobytes())
    folder_of(tmp_path, images)
    outcome = convert(tmp_path)
    assert outcome.code == 0 and "the index 0 has the colour (10, 10, 10)" in outcome.text, outcome.text
    (tmp_path / "colours.txt").write_text(LISTS["comma"])
    outcome = convert(tmp_path, "--colours", tmp_path / "colours.txt")
    assert outcome.code == 0 and "warning" not in outcome.text
    assert np.array_equal(written(tmp_path), indices()) and np.array_equal(written(tmp_path, 1), 2 - indices())


def test_jpeg_is_no_label(tmp_path):
    folder_of(tmp_path, [indices(), OWN[indices()]], ".jpg")
    outcome = convert(tmp_path)
    assert outcome.code == 1 and "n0.jpg: a JPEG file does not keep" in outcome.text
    (tmp_path / "colours.txt").write_text(LISTS["comma"])
    outcome = convert(tmp_path, "--colours", tmp_path / "colours.txt")
    assert outcome.code == 1 and "n1.jpg: the pixel at row" in outcome.text


# --- colours of a list

@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("text", LISTS.values(), ids=LISTS)
def test_lists_of_colours(tmp_path, text, alpha):
    colours = OWN[indices()]
    folder_of(tmp_path, [np.dstack([colours, indices(1, 256)]) if alpha else colours, OWN[indices() * 0]])
    (tmp_path / "colours.txt").write_text(text)
    outcome = convert(tmp_path, "--colours", tmp_path / "colours.txt")
    assert outcome.code == 0 and "classes: 0 ground, 1 red roof, 2 blue" in outcome.text, outcome.text
    assert ("255 (void): Void, ignore" in outcome.text) == ("Void" in text)
    assert np.array_equal(written(tmp_path), indices())
    assert not written(tmp_path, 1).any()  # one colour alone, and a grey one
    assert load_class_names(tmp_path / "out/class_names.txt", 3) == ["ground", "red roof", "blue"]
    assert f"--n_class 3 --class_names {tmp_path / 'out/class_names.txt'}" in outcome.text


@pytest.mark.parametrize("mark, encoding", [(codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"),
                                            (codecs.BOM_UTF16_BE, "utf-16-be"), (codecs.BOM_UTF32_LE, "utf-32-le")])
def test_byte_order_marks(tmp_path, mark, encoding):
    (tmp_path / "colours.txt").write_bytes(mark + "Grün\t0,80,0\r\nrot\t80,0,0\r\n".encode(encoding))
    assert read_colours(tmp_path / "colours.txt").class_names() == ["Grün", "rot"]


def test_void_and_many_to_one(tmp_path):
    (tmp_path / "colours.txt").write_text("4,tree,0,80,0\n4,bush,0,90,0\n255,border,1,1,1\nvoid,0,0,0\n1,road,9,9,9\n")
    colours = read_colours(tmp_path / "colours.txt")
    pixels = np.array([[[0, 80, 0], [0, 90, 0], [1, 1, 1], [0, 0, 0], [9, 9, 9]]], np.uint8)
    assert labels_of_colours(pixels, colours).tolist() == [[4, 4, 255, 255, 1]]
    assert colours.class_names() == ["class 0", "road", "class 2", "class 3", "tree"]


def test_a_colour_that_is_not_in_the_list(tmp_path):
    smooth = OWN[indices()]
    smooth[4, 6] = (190, 35, 33)
    folder_of(tmp_path, [smooth, OWN[indices(1)]])
    (tmp_path / "colours.txt").write_text(LISTS["comma"])
    outcome = convert(tmp_path, "--colours", tmp_path / "colours.txt")
    assert outcome.code == 1 and np.array_equal(written(tmp_path, 1), indices(1))
    for words in ("n0.png: the pixel at row 4, column 6 has the colour (190, 35, 33)", "none of the 3 in",
                  "0.93% of the pixels", "nearest to this one is (200, 30, 30), red roof"):
        assert words in outcome.text, outcome.text


def test_what_was_converted_by_other_colours_is_converted_again(tmp_path):
    folder_of(tmp_path, [OWN[indices() * 0]])  # (10, 10, 10) alone can pass for the index 10
    assert convert(tmp_path).code == 0 and np.unique(written(tmp_path)).tolist() == [10]
    (tmp_path / "colours.txt").write_text(LISTS["comma"])
    options = "--colours", tmp_path / "colours.txt"
    assert "1 written" in convert(tmp_path, *options).text and not written(tmp_path).any()
    assert "1 already there" in convert(tmp_path, *options).text
    (tmp_path / "colours.txt").write_text("new,0,0,0\n" + LISTS["comma"])
    assert "1 written" in convert(tmp_path, *options).text and np.unique(written(tmp_path)).tolist() == [1]


@pytest.mark.parametrize("text, words", [
    ("road,1,2,3\nhouse,4,5\n", "line 2: 'house,4,5' is no name with a colour"),
    ("road,1,2,256\n", "line 1"), ("road,1,2,3,4\n", "line 1"), ("road\n", "line 1"), ("1,2,3\n", "line 1"),
    ("a,1,2,3\nb,1,2,3\n", "line 2: 'b' has the colour (1, 2, 3) of 'a'"), ("a,1,2,3\na,1,2,4\n", "occurs twice"),
    ("0,a,1,2,3\nb,1,2,4\n", "line 2: some classes have an index"), ("256,a,1,2,3\n", "index 256; expected 0 to 254"),
    ("", "has no class"), ("void,0,0,0\n", "has no class"),
    ("".join(f"c{i},0,0,{i}\n" for i in range(256)), "line 256: 'c255' has the index 255"),
])
def test_lists_that_are_refused(tmp_path, text, words):
    (tmp_path / "colours.txt").write_text(text)
    with pytest.raises(InputError) as error:
        read_colours(tmp_path / "colours.txt")
    assert words in str(error.value) and error.value.about == "colours"


def test_lists_that_are_no_text(tmp_path):
    folder_of(tmp_path, [indices()])
    (tmp_path / "colours.txt").write_bytes(b"Stra\xdfe,1,2,3\n")
    assert "is not UTF-8 text" in convert(tmp_path, "--colours", tmp_path / "colours.txt").text
    outcome = convert(tmp_path, "--colours", tmp_path / "none.txt")
    assert outcome.code == 2 and "does not exist" in outcome.text
    outcome = convert(tmp_path, "--n_class", 256)
    assert outcome.code == 2 and outcome.text.endswith("give 1 to 255 (--n_class)")
