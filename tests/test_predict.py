"""Pictures, image files and test-time averaging: what predict.py is made of."""
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2lab

from helpers import call
from models import SparseMask, connectivity
from models.inference import TestTimeAugmentation
from models.losses import resize_logits
from utils.colour_map import colour_map
from utils.errors import InputError, InputWarning
from utils.pictures import overlay, palette, palette_image, side_by_side
from VOC12.image_files import ImageFiles, find_images
from VOC12.image_io import read_image
from VOC12.labels import VOID
from VOC12.transforms import EvalTransform


def test_palettes_are_voc_s_for_21_classes_and_distinct_otherwise():
    assert (palette(21) == colour_map()).all()
    for num_classes, apart in ((2, 40), (11, 40), (40, 18), (255, 4)):
        colours = palette(num_classes)
        lab = rgb2lab(colours[[*range(num_classes), VOID]] / 255.0)
        distance = np.linalg.norm(lab[:, None] - lab, axis=2) + 1000 * np.eye(len(lab))
        assert distance.min() > apart, num_classes


def test_a_palette_image_keeps_the_indices():
    label = np.array([[0, 1, 254], [255, 20, 3]], np.uint8)
    image = palette_image(label, 11)
    assert image.mode == "P" and (np.array(image) == label).all()
    assert (np.array(image.convert("RGB"))[0, 1] == palette(11)[1]).all()


@pytest.mark.parametrize("size", [(1, 1), (40, 30), (60, 700)])
def test_the_overlay_keeps_the_image_s_place_and_shows_the_classes_present(size):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    label = np.zeros(size, np.uint8)
    label[:, size[1] // 2:] = 2
    picture = np.array(overlay(image, label, ["ground", "green square", "blue square"]))
    colours = palette(3)
    expected = (0.4 * image + 0.6 * colours[label]).round()
    assert np.abs(picture[:size[0], :size[1]] - expected).max() <= 1
    legend = picture[size[0]:].reshape(-1, 3)
    assert (legend == colours[2]).all(1).any()
    assert (legend == colours[0]).all(1).any() == (size[1] > 1)  # of a single pixel only one class
    assert not (legend == colours[1]).all(1).any()


def test_the_overlay_leaves_voc_s_background_as_it_is():
    image = np.full((4, 4, 3), 200, np.uint8)
    label = np.zeros((4, 4), np.uint8)
    label[0] = 15
    picture = np.array(overlay(image, label, list(map(str, range(21)))))
    assert (picture[1:4, :4] == 200).all() and (picture[0, :4] != 200).any()


def test_side_by_side_shows_pictures_of_any_size_whole():
    red, green = (Image.new("RGB", (30, height), colour) for colour, height in (("red", 20), ("green", 40)))
    picture = np.array(side_by_side([[red, red], [green, green], [red, red]], ("a", "b"), min_width=30))
    assert picture.shape == (24 + 20 + 8 + 40 + 8 + 20, 30 + 8 + 30, 3)
    assert (picture[24:, :30] == (255, 0, 0)).all(2).sum() == 2 * 20 * 30
    assert (picture[24:, 38:] == (0, 128, 0)).all(2).sum() == 40 * 30


def test_files_folders_and_patterns_get_names_of_their_own(tmp_path):
    for name in ("a.jpg", "a.png", "sub/a.jpg", "b.JPG", "notes.txt", "z_1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    names = dict((str(f.relative_to(tmp_path)), n) for f, n in find_images([tmp_path]))
    assert names == {"a.jpg": "a", "a.png": "a_png", "b.JPG": "b", "sub/a.jpg": "sub/a", "z_1.png": "z_1"}
    assert [n for _, n in find_images([tmp_path / "a.jpg", tmp_path / "sub" / "a.jpg", tmp_path / "a.jpg"])] == \
        ["a", "a_jpg"]
    patterns = [str(tmp_path / "*.jpg"), str(tmp_path / "**" / "*.png")]
    assert [n for _, n in find_images(patterns)] == ["a", "a_png", "z_1"]
    with pytest.raises(InputError, match="names no image"):
        find_images([str(tmp_path / "*.gif")])


TOOLS = ("._a.jpg", ".hidden.jpg", ".ipynb_checkpoints/a-checkpoint.jpg", "__MACOSX/a.jpg", "__MACOSX/._a.jpg",
         "@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg", ".thumbnails/a.png", "sub/@eaDir/a.jpg", "sub/._a.png", "Thumbs.db")


def test_what_is_hidden_or_a_tool_s_own_is_skipped_unless_named(tmp_path):
    for name in ("a.jpg", "sub/a.png", *TOOLS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    for arguments in ([tmp_path], [tmp_path / "**" / "*.*"], [tmp_path / "*", tmp_path / "*" / "*"],
                      [tmp_path, tmp_path / "@eaDir"]):
        found = {file.relative_to(tmp_path).as_posix() for file, _ in find_images(arguments)}
        assert found == {"a.jpg", "sub/a.png"}, arguments
    for name in TOOLS:
        assert [file for file, _ in find_images([tmp_path / name])] == [tmp_path / name]
    assert [n for _, n in find_images([tmp_path / ".thumbnails"])] == ["a"]
    assert [n for _, n in find_images([tmp_path / ".thumbnails" / "*.png"])] == ["a"]
    with pytest.raises(InputError, match="2 in all, is hidden"):
        find_images([tmp_path / "__MACOSX"])


def test_folders_above_may_be_hidden(tmp_path):
    folder = tmp_path / ".cache" / "@eaDir" / "photos"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_text("")
    assert [n for _, n in find_images([folder])] == [n for _, n in find_images([folder / "*.jpg"])] == ["a"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of a network with random weights."""
    torch.manual_seed(0)
    network = SparseMask(connectivity.published(), depth=4, num_classes=21)
    path = tmp_path_factory.mktemp("checkpoint") / "network.pth.tar"
    torch.save({"state_dict": network.state_dict(), "settings": {"crop_size": 64}}, path)
    return path


@pytest.fixture
def predict(checkpoint):
    """predict.py with this checkpoint."""
    return lambda *options: call("predict.py", "--checkpoint", checkpoint, "--gpu", -1, "--n_worker", 0, *options)


@pytest.fixture
def photos(data, tmp_path):
    """A folder from a Mac."""
    folder = tmp_path / "photos"
    (folder / ".ipynb_checkpoints").mkdir(parents=True)
    for name in ("n0", "n1"):
        shutil.copy(data / "img" / f"{name}.jpg", folder)
    shutil.copy(data / "img" / "n0.jpg", folder / ".ipynb_checkpoints" / "n0-checkpoint.jpg")
    (folder / "._n0.jpg").write_bytes(b"\x00\x05\x16\x07" + bytes(60))
    return folder


@pytest.mark.parametrize("given", ["folder", "pattern", "shell"])
@pytest.mark.parametrize("inside", ["", "predictions", "../elsewhere"])
def test_a_second_run_overwrites_its_results(predict, photos, inside, given):
    out = photos / inside
    runs = []
    for _ in range(2):
        visible = sorted(path for path in photos.iterdir() if not path.name.startswith("."))
        images = {"folder": [photos], "pattern": [photos / "**" / "*"], "shell": visible}[given]
        code, text = predict(*images, "--out", out)
        assert code == 0 and "of 2 images" in text, text
        runs.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*.png")})
    assert runs[0] == runs[1]
    assert set(map(str, runs[0])) == {"n0.png", "n0_overlay.png", "n1.png", "n1_overlay.png"}
    assert "a result of this program" in predict(out if inside else photos / "*.png").text


def test_no_file_of_somebody_else_is_overwritten(predict, data, tmp_path):
    before = (data / "gt" / "n0.png").read_bytes()
    code, text = predict(data / "img" / "n0.jpg", "--out", data / "gt")
    assert code == 2 and "did not write" in text and "another --out" in text
    assert (data / "gt" / "n0.png").read_bytes() == before


def test_a_list_gives_palette_pngs_alone_as_the_voc_server_wants_them(predict, data, tmp_path):
    (tmp_path / "list.txt").write_text("n5\nn6\n")
    code, text = predict("--list", tmp_path / "list.txt", "--im_path", data / "img", "--no_overlay", "--out",
                         tmp_path / "out")
    assert code == 0 and "NAME.png of 2 images" in text
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"n5.png", "n6.png"}
    for path in (tmp_path / "out").iterdir():
        with Image.open(path) as image:
            assert image.format == "PNG" and image.mode == "P" and image.size == (76, 70)
            assert image.getpalette() == colour_map().ravel().tolist()


def test_a_list_whose_results_would_overwrite_one_another(predict, data, tmp_path):
    for name in ("a", "a_overlay"):
        shutil.copy(data / "img" / "n0.jpg", tmp_path / f"{name}.jpg")
    (tmp_path / "list.txt").write_text("a\na_overlay\n")
    options = "--list", tmp_path / "list.txt", "--im_path", tmp_path, "--out", tmp_path / "out"
    code, text = predict(*options)
    assert code == 2 and "--no_overlay" in text
    assert predict(*options, "--no_overlay").code == 0


def test_images_or_a_list(predict, data):
    for options, words in (((), "no image is given"), (("a.jpg", "--list", "b.txt"), "not both"),
                           (("a.jpg", "--im_path", data), "are for a --list"),
                           (("--list", data / "val.txt", "--im_path", data / "gone"), "does not exist")):
        code, text = predict(*options)
        assert code == 2 and words in text


def test_images_of_any_mode(tmp_path):
    """Grey, 16-bit grey, RGBA, palette, CMYK; one turned by its camera's note."""
    grey = np.arange(40 * 50, dtype=np.uint16).reshape(40, 50) * 30
    Image.fromarray(grey).save(tmp_path / "deep.png")
    for mode in ("L", "LA", "RGB", "RGBA", "P", "CMYK", "1"):
        Image.new(mode, (50, 40)).save(tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (50, 40)).save(tmp_path / "turned.jpg", exif=exif)
    files = [file for file, _ in find_images([tmp_path])]
    samples = {file.stem: sample for file, sample in zip(files, ImageFiles(files, EvalTransform(32)), strict=True)}
    assert len(samples) == 9
    for name, sample in samples.items():
        size = (50, 40) if name == "turned" else (40, 50)
        assert sample.image.shape == (*size, 3) and sample.label.shape == size
    assert (samples["deep"].image[..., 1].numpy() == np.round(grey * (255 / 65535))).all()


def test_32_bit_images_hold_16_bits_or_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 513, np.int32)).save(tmp_path / "a.tif")
    with pytest.warns(InputWarning, match="1023 were white"):
        assert (read_image(tmp_path / "a.tif") == 128).all()
    Image.fromarray(np.full((4, 4), 10 ** 6, np.int32)).save(tmp_path / "b.tif")
    with pytest.raises(InputError, match="32 bits"):
        read_image(tmp_path / "b.tif")


def toy(image):
    """A "network" that is neither even nor of full size: logits of three classes at half the size."""
    x = image[:, :, ::2, ::2]
    return torch.cat([x[:, :1], 2 * x[:, 1:2].roll(1, 3), x[:, 2:] ** 2], dim=1)


def test_augmentation_with_one_scale_is_the_softmax():
    image = torch.randn(2, 3, 33, 41)
    expected = resize_logits(toy(image), image[:, 0]).softmax(1)
    assert torch.allclose(TestTimeAugmentation(toy, [1.0], False)(image), expected, atol=1e-6)


def test_the_augmented_output_is_the_mean_over_scales_and_mirror_images():
    image = torch.randn(2, 3, 97, 81)
    total = 0
    for scale in (0.5, 1.0, 1.5):
        size = [round(scale * (length - 1)) + 1 for length in image.shape[2:]]
        x = torch.nn.functional.interpolate(image, size=size, mode="bilinear", align_corners=True)
        for turned in (False, True):
            p = resize_logits(toy(x.flip(3) if turned else x), image[:, 0]).softmax(1)
            total = total + (p.flip(3) if turned else p) / 6
    averaged = TestTimeAugmentation(toy, (0.5, 1.0, 1.5), True)(image)
    assert torch.allclose(averaged, total, atol=1e-6)
    assert torch.allclose(TestTimeAugmentation(toy, (0.5, 1.0, 1.5), True)(image.flip(3)), averaged.flip(3), atol=1e-6)


def test_small_scales_keep_what_the_encoder_needs():
    sizes = []

    def forward(image):
        sizes.append(tuple(image.shape[2:]))
        return image
    TestTimeAugmentation(forward, (0.1,), False)(torch.randn(1, 3, 100, 400))
    assert sizes == [(32, 41)]
