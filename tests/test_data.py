"""Transforms against the plain pipeline, the dataset's files and messages, loading that no worker count changes."""
import os
import signal
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.plain_loading import plain_train_transform
from utils.errors import InputError
from VOC12.dataset import EpochBatches, SegmentationDataset
from VOC12.image_io import read_image
from VOC12.index_png import read_label
from VOC12.loading import batches, explain_loader_death, join_equal, make_loader
from VOC12.transforms import IMAGENET, EvalTransform, Sample, TrainTransform, denormalize, to_network


def picture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, (height, width), dtype=np.uint8)
    label[:2] = 255
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8), label


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "img").mkdir()
    (tmp_path / "gt").mkdir()
    names = [f"im_{i}" for i in range(7)]
    for i, name in enumerate(names):
        image, label = picture(40 + i, 50 - i, i)
        Image.fromarray(image).save(tmp_path / "img" / f"{name}.{'jpg' if i % 2 else 'png'}")
        Image.fromarray(label).save(tmp_path / "gt" / f"{name}.png")
    (tmp_path / "list.txt").write_text("\n".join(names) + "\n")
    return tmp_path


def dataset(folder, num_classes=4, transform=None, seed=0):
    return SegmentationDataset(folder / "img", folder / "gt", folder / "list.txt", num_classes,
                               transform or TrainTransform(32), seed)


def as_batch(sample):
    return Sample(*(part[None] for part in sample))


def network_input(sample):
    """What the network would get of one Sample, in double precision."""
    image, label = to_network(as_batch(sample), "cpu", torch.float64)
    return image[0], label[0]


@pytest.mark.parametrize("size", [(40, 56), (33, 90), (20, 20), (120, 31)])
@pytest.mark.parametrize("crop", [32, 49, (32, 49), (60, 24)])
def test_training_transform_equals_the_plain_pipeline(size, crop):
    """Same draws, same label, same padding, and an image within rounding: one of 255 levels, half on average."""
    image, label = picture(*size)
    transform = TrainTransform(crop)
    level = 1 / 255 / torch.tensor(IMAGENET[1], dtype=torch.float64).view(3, 1, 1)
    for seed in range(30):
        ours = network_input(transform(image, label, np.random.default_rng(seed)))
        plain = plain_train_transform(image, label, np.random.default_rng(seed), crop)
        assert torch.equal(ours[1], plain[1])
        error = (ours[0] - plain[0].double()) / level
        assert error.abs().max() < 1.01 and error.abs().mean() < 0.5


def test_augmentation_varies():
    image, label = picture(64, 64)
    transform = TrainTransform(32)
    results = [transform(image, label, np.random.default_rng(seed)).image for seed in range(8)]
    assert all(not torch.equal(a, b) for i, a in enumerate(results) for b in results[:i])


def test_evaluation_pads_equally_and_keeps_every_pixel():
    image, label = picture(30, 61)
    sample = EvalTransform(41)(image, label)
    x, y = network_input(sample)
    assert sample.image.dtype == sample.label.dtype == torch.uint8
    assert x.shape == (3, 41, 61) and y.shape == (41, 61)
    assert (y[:5] == 255).all() and (y[35:] == 255).all() and (x[:, :5] == 0).all() and (x[:, 35:] == 0).all()
    assert torch.equal(y[5:35], torch.from_numpy(label.astype(np.int64)))
    assert (denormalize(x[:, 5:35]).permute(1, 2, 0).numpy() == image).all()


def test_normalization_is_imagenets():
    white = EvalTransform(1)(np.full((1, 1, 3), 255, np.uint8), np.zeros((1, 1), np.uint8))
    assert network_input(white)[0].flatten().tolist() == pytest.approx(
        [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])


def test_images_of_equal_size_are_joined_and_none_is_lost():
    sizes = [(40, 50), (41, 50), (40, 50), (40, 50), (41, 50), (60, 60), (40, 50)]
    samples = [as_batch(EvalTransform(1)(*picture(*size, seed))) for seed, size in enumerate(sizes)]
    joined = list(join_equal(samples, 2))
    assert [tuple(batch.label.shape) for batch in joined] == [(2, 40, 50), (2, 41, 50), (2, 40, 50), (1, 60, 60)]
    assert torch.equal(joined[1].image, torch.cat([samples[1].image, samples[4].image]))
    assert [len(batch.label) for batch in join_equal(samples, 1)] == [1] * 7


@pytest.mark.parametrize("workers", [1, 2])
def test_loading_is_the_same_whatever_the_number_of_workers(folder, workers):
    def load(num_workers):
        data = dataset(folder)
        sampler = EpochBatches(len(data), 3, seed=5)
        loader = make_loader(data, num_workers, sampler)
        out = []
        for sampler.epoch in (0, 1):
            out += list(batches(loader))
        return out
    alone, together = load(0), load(workers)
    assert len(alone) == len(together) == 6
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert not torch.equal(alone[0][0], alone[3][0])  # the epochs differ


def test_an_epoch_has_every_sample_once_and_can_begin_at_any_batch():
    sampler = EpochBatches(10, 4, seed=1)
    sampler.epoch = 3
    whole = list(sampler)
    assert sorted(index for batch in whole for _, index in batch) == list(range(10))
    assert [len(batch) for batch in whole] == [4, 4, 2] and {epoch for batch in whole for epoch, _ in batch} == {3}
    sampler.start = 1
    assert list(sampler) == whole[1:]
    other = EpochBatches(10, 4, seed=2)
    other.epoch = 3
    assert list(other) != whole


def test_the_seed_changes_the_augmentation(folder):
    assert not torch.equal(dataset(folder, seed=0)[0][0], dataset(folder, seed=1)[0][0])


def test_palette_labels_are_read_by_index(tmp_path):
    image = Image.fromarray(np.array([[0, 3], [255, 1]], np.uint8))
    image.putpalette(list(range(255, -1, -1)) * 3)
    image.save(tmp_path / "label.png")
    assert read_label(tmp_path / "label.png", 4).tolist() == [[0, 3], [255, 1]]


def test_grey_labels_of_few_bits_are_not_stretched(tmp_path):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, 2, 0, 0, 0, 0))  # 4x1 pixels of 2 bits, grey
    row = bytes([0, 0b00011011])  # four pixels behind the row's filter byte
    (tmp_path / "label.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(row)) +
                                         chunk(b"IEND", b""))
    assert read_label(tmp_path / "label.png", 4).tolist() == [[0, 1, 2, 3]]


def test_sixteen_bit_images_keep_their_high_byte_and_others_are_refused(tmp_path):
    Image.fromarray(np.full((2, 2), 40_000, np.uint16)).save(tmp_path / "grey.png")
    assert (read_image(tmp_path / "grey.png") == 40_000 >> 8).all()
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(InputError, match="32 bits"):
        read_image(tmp_path / "float.tif")


@pytest.fixture
def load():
    """load(dataset, workers): all its batches. The processes end with the test: pytest keeps the error and what it
    refers to, and PyTorch takes 10 s to free a loader in a cycle of references, since its queues end first.
    """
    made = []

    def load(dataset, workers):
        made.append(make_loader(dataset, workers))
        return list(batches(made[-1]))

    yield load
    for loader in made:
        if loader._iterator is not None:
            loader._iterator._shutdown_workers()


@pytest.mark.parametrize("damage, words", [
    (lambda f: (f / "gt" / "im_0.png").write_bytes(b"no image"), ["im_0.png", "cannot be read"]),
    (lambda f: (f / "img" / "im_0.png").write_bytes((f / "img" / "im_0.png").read_bytes()[:200]), ["im_0.png", "read"]),
    (lambda f: Image.new("RGB", (50, 40), (9, 9, 8)).save(f / "gt" / "im_0.png"),
     ["im_0.png", "RGB", "convert_labels.py"]),
    (lambda f: Image.new("L", (50, 40), 9).save(f / "gt" / "im_0.png"), ["im_0.png", "value 9", "0 to 3"]),
    (lambda f: Image.new("I;16", (50, 40), 300).save(f / "gt" / "im_0.png"), ["im_0.png", "value 300", "0 to 3"]),
    (lambda f: Image.new("F", (50, 40), 9).save(f / "gt" / "im_0.png", format="TIFF"),
     ["im_0.png", "mode of the image is F"]),
    (lambda f: Image.new("L", (9, 9)).save(f / "gt" / "im_0.png"), ["im_0.png", "50x40", "9x9"]),
])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_file_is_one_sentence_that_names_it(folder, damage, words, workers, load):
    damage(folder)
    with pytest.raises(InputError) as error:
        load(dataset(folder), workers)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_keeps_its_parameter_on_the_way_from_a_loader_process(folder, workers, load):
    with pytest.raises(InputError, match="number of classes") as error:
        load(dataset(folder, num_classes=2), workers)
    assert error.value.about == ("num_classes", "label_map")


def test_missing_files_are_found_before_the_run(folder):
    (folder / "img" / "im_3.jpg").unlink()
    with pytest.raises(InputError, match="lists 'im_3'"):
        dataset(folder)
    with pytest.raises(InputError, match="nowhere"):
        SegmentationDataset(folder / "nowhere", folder / "gt", folder / "list.txt", 4, None)
    with pytest.raises(InputError, match="number of classes"):
        SegmentationDataset(folder / "gt", folder / "gt", folder / "list.txt", 0, None)


class Trouble(torch.utils.data.Dataset):
    """A dataset whose third item kills its process, or fails as one does when shared memory is full."""

    def __init__(self, kind):
        self.kind = kind

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 2 and self.kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 2:
            raise OSError(28, "No space left on device") if self.kind == "full" else RuntimeError("a bug")
        return EvalTransform(8)(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8))


@pytest.mark.parametrize("kind", ["killed", "full"])
def test_a_loader_process_that_dies_is_one_sentence(kind, load):
    with pytest.raises(InputError, match="fewer loader") as error, explain_loader_death():  # as the commands do
        load(Trouble(kind), 1)
    assert error.value.about == "num_workers" and "\n" not in str(error.value)


class Failing:
    """A loader with a process whose next batch is an error."""
    num_workers = 1

    def __init__(self, error):
        self.error = error

    def __iter__(self):
        raise self.error
        yield


@pytest.mark.parametrize("error", [EOFError(), ConnectionRefusedError(111, "Connection refused"),
                                   FileNotFoundError(2, "No such file or directory")])
def test_a_loader_process_that_is_gone_while_its_batch_is_fetched(error):
    with pytest.raises(InputError, match="fewer loader processes"):
        list(batches(Failing(error)))
    with pytest.raises(EOFError):
        list(batches(Failing(EOFError("Caught EOFError in DataLoader worker process 0.\nTraceback\nEOFError"))))


def test_a_bug_in_a_loader_process_keeps_its_traceback(load):
    with pytest.raises(RuntimeError, match="a bug"):
        load(Trouble("bug"), 1)
