"""prepare.py on a tiny dataset in the layout of the real one, its downloads from a server on this machine."""
import hashlib
import http.server
import io
import shutil
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from utils.colour_map import colour_map
from utils.errors import InputError
from VOC12 import download as download_module
from VOC12 import join, prepare, unpack
from VOC12.download import fetch
from VOC12.lists import read_list

SCRIPT = Path(__file__).resolve().parents[1] / "VOC12/prepare.py"
SBD_TRAIN, SBD_VAL, VOC_TRAIN, VOC_VAL = ["d", "a", "both"], ["v", "b"], ["both", "c"], ["w", "v"]
TRAIN_AUG = ["a", "b", "both", "c", "d"]


def save_image(folder, name, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 9, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / f"{name}.jpg")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """ROOT with both data sets unpacked. "both" and "v" are in both, and differ."""
    root = tmp_path_factory.mktemp("raw")
    sbd, voc = root / "benchmark_RELEASE/dataset", root / "VOCdevkit/VOC2012"
    for folder in (sbd / "img", sbd / "cls", voc / "JPEGImages", voc / "SegmentationClass",
                   voc / "ImageSets/Segmentation"):
        folder.mkdir(parents=True)
    for seed, name in enumerate(SBD_TRAIN + SBD_VAL):
        save_image(sbd / "img", name, seed)
        scipy.io.savemat(sbd / f"cls/{name}.mat", {"GTcls": {"Segmentation": np.full((8, 9), 1, dtype=np.uint8)}})
    for seed, name in enumerate(VOC_TRAIN + VOC_VAL, start=50):
        save_image(voc / "JPEGImages", name, seed)
        label = Image.fromarray(np.full((8, 9), 2, dtype=np.uint8))
        label.putpalette(colour_map().tobytes())
        label.save(voc / f"SegmentationClass/{name}.png")
    save_image(voc / "JPEGImages", "unlabelled", 99)
    for path, names in ((sbd / "train.txt", SBD_TRAIN), (sbd / "val.txt", SBD_VAL),
                        (voc / "ImageSets/Segmentation/train.txt", VOC_TRAIN),
                        (voc / "ImageSets/Segmentation/val.txt", VOC_VAL)):
        path.write_text("\n".join(names) + "\n")
    return root


@pytest.fixture
def root(raw, tmp_path):
    return Path(shutil.copytree(raw, tmp_path / "root"))


def pack(raw, folder):
    """The two archives of `raw`, in `folder`."""
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / "benchmark.tgz", "w:gz") as tar:
        tar.add(raw / "benchmark_RELEASE", "benchmark_RELEASE")
    with tarfile.open(folder / "VOCtrainval_11-May-2012.tar", "w") as tar:
        tar.add(raw / "VOCdevkit", "VOCdevkit")
    return folder


def hashes(folder, only=""):
    return {str(path.relative_to(folder)): (hashlib.md5(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
            for path in sorted(folder.rglob("*")) if path.is_file() and str(path.relative_to(folder)).startswith(only)}


def run(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True)


def value(path):
    return set(np.unique(np.asarray(Image.open(path))).tolist())


# --- the whole

def test_command_from_archives_and_again(raw, tmp_path):
    root, data = pack(raw, tmp_path / "root"), tmp_path / "data"
    archives = hashes(root)
    first = run("--root", root, "--data", data, "--trainaug_count", 5)
    assert first.returncode == 0, first.stderr
    assert read_list(data / "train.txt") == VOC_TRAIN and read_list(data / "val.txt") == VOC_VAL
    assert read_list(data / "train_aug.txt") == TRAIN_AUG
    for name in TRAIN_AUG + VOC_VAL:
        assert (data / f"img/{name}.jpg").is_file()
        assert value(data / f"gt/{name}.png") == {2 if name in VOC_TRAIN + VOC_VAL else 1}
    image = root / "VOCdevkit/VOC2012/JPEGImages/both.jpg"
    assert (data / "img/both.jpg").read_bytes() == image.read_bytes()
    assert "7 of 7" in first.stdout

    made = hashes(root)
    assert archives.items() <= made.items()  # the archives are unchanged
    downloaded = {key: value[0] for key, value in hashes(raw).items()}
    assert downloaded.items() <= {key: value[0] for key, value in made.items()}.items()  # and so is what they contain
    assert not list(root.glob(".*"))
    second = run("--root", root, "--data", data, "--trainaug_count", 5)
    assert second.returncode == 0 and hashes(root) == made
    assert second.stdout.count("already there") == 5 and "no new links" in second.stdout

    root.rename(tmp_path / "moved")  # links in it are relative
    assert (tmp_path / "moved/joined/gt/a.png").is_file()


def test_layouts_of_torchvision(root, tmp_path):
    """SBDataset moves its files to the root and leaves the emptied folders."""
    for part in ("img", "cls", "train.txt", "val.txt"):
        (root / "benchmark_RELEASE/dataset" / part).rename(root / part)
    (root / "TrainVal").mkdir()
    (root / "VOCdevkit").rename(root / "TrainVal/VOCdevkit")
    before = hashes(root)
    assert prepare.prepare(root, tmp_path / "data", trainaug_count=5) == []
    assert before.items() <= hashes(root).items()
    assert value(tmp_path / "data/gt/a.png") == {1} and value(tmp_path / "data/gt/both.png") == {2}
    assert (root / "cls_png/a.png").is_file()


def test_sources_are_not_touched(root, tmp_path):
    before = hashes(root)
    assert prepare.prepare(root, tmp_path / "data", trainaug_count=0) == []
    assert before.items() <= hashes(root).items()


def test_finishes_what_was_interrupted(root, tmp_path):
    data = tmp_path / "data"
    prepare.prepare(root, data, trainaug_count=0)
    wanted = {key: value[0] for key, value in hashes(root).items()}
    (root / "benchmark_RELEASE/dataset/cls_png/a.png").write_bytes(b"\x89PNG")
    (root / "VOCdevkit/VOC2012/SegmentationClass_1D/w.png").unlink()
    (root / "joined/gt/b.png").unlink()
    (root / "joined/img/both.jpg").unlink()
    (root / "joined/img/both.jpg").symlink_to("../../benchmark_RELEASE/dataset/img/both.jpg")
    (data / "gt").unlink()
    (data / "val.txt").write_text("w\n")
    assert prepare.prepare(root, data, trainaug_count=0) == []
    assert {key: value[0] for key, value in hashes(root).items()} == wanted
    assert read_list(data / "val.txt") == VOC_VAL and value(data / "gt/w.png") == {2}


def test_copies_where_there_are_no_links(root, monkeypatch):
    def refuse(*_, **__):
        raise OSError(1, "Operation not permitted")
    monkeypatch.setattr(join.os, "symlink", refuse)
    sources = {"x.jpg": root / "VOCdevkit/VOC2012/JPEGImages/w.jpg", "none.jpg": root / "none.jpg"}
    assert join.link_files(sources, root / "joined/img") == 1
    assert join.link_files(sources, root / "joined/img") == 0
    copy = root / "joined/img/x.jpg"
    assert not copy.is_symlink() and copy.read_bytes() == sources["x.jpg"].read_bytes()
    with pytest.raises(InputError, match="cannot make the link"):
        join.make_data_link(root / "data", "img", root / "joined")


# --- what goes wrong

def test_verification_names_each_file(root, tmp_path):
    sbd, voc = root / "benchmark_RELEASE/dataset", root / "VOCdevkit/VOC2012"
    (sbd / "img/a.jpg").unlink()
    (sbd / "cls/b.mat").unlink()
    whole = (sbd / "img/d.jpg").read_bytes()
    (sbd / "img/d.jpg").write_bytes(whole[:len(whole) // 2])
    Image.new("RGB", (8, 9)).save(voc / "JPEGImages/w.jpg")
    result = run("--root", root, "--data", tmp_path / "data", "--trainaug_count", 0)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    failures = {line[0]: line for line in result.stderr.splitlines() if line[1:2] == ":"}
    assert set(failures) == {"a", "b", "d", "w"} and "3 of 7" in result.stdout
    for name, word in {"a": "no image", "b": "no label", "d": "cannot be read", "w": "8 x 9"}.items():
        assert word in failures[name]


@pytest.mark.parametrize("label, word", [(Image.fromarray(np.full((8, 9), 33, dtype=np.uint8)), "has the value 33"),
                                         (Image.new("RGB", (9, 8)), "colours")])
def test_verification_looks_at_labels(raw, tmp_path, label, word):
    label.save(tmp_path / "a.png")
    with pytest.raises(InputError, match=word):
        join.check_pair(raw / "benchmark_RELEASE/dataset/img/a.jpg", tmp_path / "a.png")


def test_a_failed_conversion_ends_it(root, tmp_path):
    (root / "benchmark_RELEASE/dataset/cls/a.mat").write_bytes(b"")
    (name, _), = prepare.prepare(root, tmp_path / "data", trainaug_count=0)
    assert name.endswith("a.mat") and not (root / "joined").exists()


def test_wrong_count_says_what_is_missing(root, tmp_path):
    result = run("--root", root, "--data", tmp_path / "data")
    assert result.returncode == 2
    for word in ("5 names instead of 10582", "SBD train has 3 names of 8498", "SBD val has 2 names of 2857",
                 "VOC train has 2 names of 1464", "VOC val has 2 names of 1449"):
        assert word in result.stderr
    with pytest.raises(InputError, match="instead of 6: SBD train has 3 names,"):
        prepare.prepare(root, tmp_path / "data", trainaug_count=6)
    assert not (tmp_path / "data").exists()


def test_missing_archives(root, tmp_path):
    result = run("--root", tmp_path / "none")
    assert result.returncode == 2 and "benchmark.tgz" in result.stderr and "--download" in result.stderr
    assert "VOCtrainval_11-May-2012.tar" in result.stderr and "Traceback" not in result.stderr
    shutil.rmtree(root / "VOCdevkit")
    with pytest.raises(InputError, match="VOCtrainval") as error:
        prepare.prepare(root, tmp_path / "data", trainaug_count=0)
    assert "benchmark.tgz" not in str(error.value)
    (root / "VOCdevkit/VOC2012/JPEGImages").mkdir(parents=True)
    with pytest.raises(InputError, match="lacks SegmentationClass"):
        prepare.prepare(root, tmp_path / "data", trainaug_count=0)
    assert run("--root", root, "--sbd_url", "http://localhost").returncode == 2


def test_what_is_in_the_way_stays(root, tmp_path):
    data = tmp_path / "data"
    (data / "img").mkdir(parents=True)
    (data / "img/mine.jpg").write_bytes(b"mine")
    with pytest.raises(InputError, match="is a folder, not a link"):
        prepare.prepare(root, data, trainaug_count=0)
    assert (data / "img/mine.jpg").read_bytes() == b"mine" and not (root / "joined").exists()
    (data / "img").rename(data / "other")
    (data / "gt").symlink_to(data / "other")
    with pytest.raises(InputError, match="is a link to"):
        prepare.prepare(root, data, trainaug_count=0)
    (data / "gt").unlink()
    (root / "joined").mkdir()
    (root / "joined/img").symlink_to("../benchmark_RELEASE/dataset/img")  # links made in there would replace images
    before = hashes(root, "benchmark_RELEASE/dataset/img")
    with pytest.raises(InputError, match="remove that link"):
        prepare.prepare(root, data, trainaug_count=0)
    assert hashes(root, "benchmark_RELEASE/dataset/img") == before


# --- archives

# From 3.12 on every Python has tarfile's filters.
WITH_AND_WITHOUT_FILTER = [True, pytest.param(False, marks=pytest.mark.skipif(sys.version_info >= (3, 12),
                                                                              reason="never without filter"))]


def make_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = content if kind != tarfile.REGTYPE else ""
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(content.encode()) if kind == tarfile.REGTYPE else None)


@pytest.mark.parametrize("with_filter", WITH_AND_WITHOUT_FILTER)
@pytest.mark.parametrize("member", [("../evil", tarfile.REGTYPE, "x"), ("good/evil", tarfile.SYMTYPE, "../../evil"),
                                    ("good/dev", tarfile.CHRTYPE, "")])
def test_unsafe_archives_are_refused(tmp_path, monkeypatch, member, with_filter):
    if not with_filter:
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    make_tar(tmp_path / "a.tar", [("good/file", tarfile.REGTYPE, "x"), member])
    with pytest.raises(InputError, match="cannot unpack"):
        unpack.unpack(tmp_path / "a.tar", tmp_path / "good")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


@pytest.mark.parametrize("with_filter", WITH_AND_WITHOUT_FILTER)
def test_unpack_begins_anew_after_a_stop(raw, tmp_path, monkeypatch, with_filter):
    if not with_filter:
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    root = pack(raw, tmp_path / "root")
    (root / ".unpacking_benchmark.tgz/benchmark_RELEASE").mkdir(parents=True)
    (root / ".unpacking_benchmark.tgz/benchmark_RELEASE/half").write_bytes(b"x")
    unpack.unpack(root / "benchmark.tgz", root / "benchmark_RELEASE")
    assert {k: v[0] for k, v in hashes(root / "benchmark_RELEASE").items()} == \
        {k: v[0] for k, v in hashes(raw / "benchmark_RELEASE").items()}


@pytest.mark.parametrize("name, folder", [("benchmark.tgz", "benchmark_RELEASE"),
                                          ("VOCtrainval_11-May-2012.tar", "VOCdevkit/VOC2012")])
def test_cut_archives(raw, tmp_path, name, folder):
    root = pack(raw, tmp_path / "root")
    whole = (root / name).read_bytes()
    for length in {0, 100, len(whole) // 3, len(whole) // 2, len(whole) // 1024 * 512} | \
            ({512 * n for n in range(0, len(whole) // 512 - 22, 3)} if name.endswith("tar") else set()):
        (root / name).write_bytes(whole[:length])
        with pytest.raises(InputError, match="cannot unpack|has no folder"):
            unpack.unpack(root / name, root / folder)
        assert not (root / folder).exists()
    make_tar(root / name, [("other/file", tarfile.REGTYPE, "x")])
    with pytest.raises(InputError, match="another archive"):
        unpack.unpack(root / name, root / folder)


# --- download

class Server(http.server.ThreadingHTTPServer):
    """Serves `content` for any path; /cut ends after a third, /whole knows no ranges, /missing is a 404, /bad differs.

    `starts` collects the first byte of each answer.
    """
    content, starts = bytes(range(256)) * 40, ()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        content = self.server.content if self.path != "/bad" else b"<html>captive portal</html>"
        if self.path == "/missing":
            return self.send_error(404)
        start = 0
        if "Range" in self.headers and self.path != "/whole":
            start = int(self.headers["Range"][len("bytes="):-1])
            if start >= len(content):
                return self.send_error(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.server.starts += (start,)
        end = min(start + len(content) // 3, len(content)) if self.path == "/cut" else len(content)
        if self.path == "/stuck":
            end = start
        self.wfile.write(content[start:end])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server(("127.0.0.1", 0), Handler) as server:
        server.url = f"http://127.0.0.1:{server.server_port}"
        server.md5 = hashlib.md5(server.content).hexdigest()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("path, part, starts", [
    ("/file", None, (0,)), ("/file", 1000, (1000,)), ("/whole", 1000, (0,)), ("/cut", None, (0, 3413, 6826, 10239)),
    ("/file", 10240, ()),
])
def test_download_goes_on_from_what_has_come(server, tmp_path, path, part, starts):
    target = tmp_path / "new/file.tar"
    if part:
        target.parent.mkdir()
        (tmp_path / "new/file.tar.part").write_bytes(server.content[:part])
    assert fetch([server.url + path], target, server.md5) == target
    assert target.read_bytes() == server.content and server.starts == starts
    assert [file.name for file in target.parent.iterdir()] == ["file.tar"]


def test_download_tries_the_next_address(server, tmp_path):
    addresses = [server.url + "/missing", "http://127.0.0.1:1/x", server.url + "/bad", "nonsense", server.url + "/file"]
    fetch(addresses, tmp_path / "file", server.md5)
    assert (tmp_path / "file").read_bytes() == server.content
    with pytest.raises(InputError) as error:
        fetch(addresses[:4], tmp_path / "other", server.md5)
    message = str(error.value)
    assert "\n" not in message and "404" in message and "md5" in message and "refused" in message.lower()
    assert all(address in message for address in addresses[:4]) and not (tmp_path / "other.part").exists()


def test_download_keeps_what_has_come(server, tmp_path):
    (tmp_path / "file.part").write_bytes(server.content[:500])
    with pytest.raises(InputError, match="ended after 500 of 10240 bytes"):
        fetch([server.url + "/stuck"], tmp_path / "file", server.md5)
    assert (tmp_path / "file.part").read_bytes() == server.content[:500]
    fetch([server.url + "/file"], tmp_path / "file", server.md5)
    assert server.starts == (500, 500)


def test_download_of_a_wrong_part_or_to_a_wrong_place(server, tmp_path):
    (tmp_path / "file.part").write_bytes(b"x" * 500)
    with pytest.raises(InputError, match="another md5"):
        fetch([server.url + "/file"], tmp_path / "file", server.md5)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "is_file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot write"):
        fetch([server.url + "/file"], tmp_path / "is_file/file", server.md5)


def test_prepare_downloads(raw, server, tmp_path, monkeypatch):
    archive = pack(raw, tmp_path / "packed") / "benchmark.tgz"
    server.content = archive.read_bytes()
    sbd = prepare.SBD._replace(md5=download_module.file_md5(archive), addresses=(server.url + "/file",))
    root = tmp_path / "root"
    shutil.copytree(raw / "VOCdevkit", root / "VOCdevkit")
    assert prepare.prepare(root, tmp_path / "data", True, (sbd, prepare.VOC), 5) == []
    assert prepare.prepare(root, tmp_path / "data", True, (sbd, prepare.VOC), 5) == []
    assert len(server.starts) == 1  # the second time all is there

    (root / "benchmark.tgz").write_bytes(b"another")
    (root / "benchmark_RELEASE").rename(root / "kept")
    with pytest.raises(InputError, match="not the archive expected"):
        prepare.prepare(root, tmp_path / "data", True, (sbd, prepare.VOC), 5)
    assert (root / "benchmark.tgz").read_bytes() == b"another"
