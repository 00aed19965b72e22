"""Pruning beyond the parity cases, the checks, text and files."""
import numpy as np
import pytest

from helpers import is_network
from models import connectivity as conn
from models import pruning
from utils.errors import InputError


def strengths_of(connectivity, weak=1e-5, strong=0.9):
    return [np.where(connectivity[l, :l + 1], strong, weak) for l in range(len(connectivity))]


def random_strengths(seed):
    rng = np.random.default_rng(seed)
    share = rng.random()
    return [np.where(rng.random((l + 1, 2)) < share, rng.random((l + 1, 2)), 0) for l in range(2 + seed % 8)]


@pytest.mark.parametrize("name", ["published", "fcn"])
def test_pruning_leaves_a_result_of_pruning_alone(name):
    connectivity = conn.NAMED[name]()
    assert (pruning.prune(strengths_of(connectivity)) == connectivity).all()


def test_a_stage_that_nothing_reads_goes_with_its_inputs():
    connectivity = conn.published()
    connectivity[5, 2, 0] = True
    assert (pruning.prune(strengths_of(connectivity)) == conn.published()).all()


def test_a_stage_without_inputs_goes_with_its_readers_connections():
    connectivity = conn.published()
    connectivity[8, 6, 1] = True  # reads D[5], which reads nothing
    assert (pruning.prune(strengths_of(connectivity)) == conn.published()).all()


def test_duplicates_are_merged_into_the_deeper_stage():
    connectivity = conn.from_table(9, {3: ((1,), ()), 5: ((1,), ()), 6: ((2,), (6,)), 8: ((), (4, 7))})
    assert (pruning.prune(strengths_of(connectivity)) ==
            conn.from_table(9, {3: ((1,), ()), 6: ((2,), (4,)), 8: ((), (4, 7))})).all()


def test_a_deeper_stage_that_adds_nothing_goes():
    connectivity = conn.from_table(9, {3: ((1,), ()), 5: ((1, 2), ()), 8: ((), (4, 6))})
    assert (pruning.prune(strengths_of(connectivity)) == conn.from_table(9, {5: ((1, 2), ()), 8: ((), (6,))})).all()


NETWORKS = {seed: is_network(random_strengths(seed), 0.1) for seed in range(60)}


@pytest.mark.parametrize("seed", [seed for seed, whole in NETWORKS.items() if whole])
def test_what_is_pruned_is_a_network_without_useless_stages(seed):
    strengths = random_strengths(seed)
    kept = pruning.prune(strengths, 0.1)
    pruning.require_input(kept, strengths, 0.1)
    assert (conn.check(kept) == kept).all()
    assert conn.unread_stages(kept) == []


@pytest.mark.parametrize("seed", [seed for seed, whole in NETWORKS.items() if not whole])
def test_what_is_pruned_to_nothing_is_said(seed):
    strengths = random_strengths(seed)
    with pytest.raises(InputError, match="nothing is left"):
        pruning.require_input(pruning.prune(strengths, 0.1), strengths, 0.1)


@pytest.mark.parametrize("strengths, words", [
    ([], "no strengths"), ([np.zeros((1, 3))], "shape"), ([np.full((1, 2), np.nan)], "0 to 1"),
    ([np.full((1, 2), 1.5)], "0 to 1"), ([np.zeros((2, 2)), np.zeros((1, 2))], "stage 0")])
def test_wrong_strengths(strengths, words):
    with pytest.raises(InputError, match=words):
        pruning.prune(strengths)


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_wrong_thresholds(threshold):
    with pytest.raises(InputError, match="threshold"):
        pruning.prune(strengths_of(conn.fcn()), threshold)


def test_check_names_what_is_wrong():
    finer = conn.fcn()
    finer[3, 5, 0] = True
    with pytest.raises(InputError, match=r"stage 3 reads E\[5\]"):
        conn.check(finer)
    with pytest.raises(InputError, match="9 stages, the encoder 5 taps"):
        conn.check(conn.fcn(), num_stages=5)
    with pytest.raises(InputError, match="other than 0 and 1"):
        conn.check(np.full((2, 2, 2), 3))
    assert conn.check(conn.fcn().astype(np.float32)).dtype == bool


def test_the_named_ones_are_networks():
    counts = {name: int(conn.check(make()).sum()) for name, make in conn.NAMED.items()}
    assert counts == {"published": 15, "fcn": 1, "unet": 17, "hypercolumn": 9, "full": 90, "sparseacn": 50,
                      "deeplabv3": 2}
    assert [int(make(4).sum()) for make in (conn.fcn, conn.unet, conn.hypercolumn, conn.full)] == [1, 7, 4, 20]
    assert not conn.hypercolumn()[8, :, 1].any()
    with pytest.raises(InputError, match="9 stages"):
        conn.published(5)


def test_description_names_every_input():
    text = conn.describe(conn.published())
    assert "D[8]   E[0] E[1] E[2] E[3] E[8]  G D[1] D[2] D[3]" in text and "15 connections in 4 of 9 stages" in text


def test_files(tmp_path):
    conn.save(tmp_path / "mask.npy", conn.unet())
    assert (conn.load(tmp_path / "mask.npy", 9) == conn.unet()).all()
    assert np.load(tmp_path / "mask.npy", allow_pickle=False).dtype == bool
    assert [p.name for p in tmp_path.iterdir()] == ["mask.npy"]
    np.savez(tmp_path / "several.npz", a=conn.unet())
    with pytest.raises(InputError, match="several arrays"):
        conn.load(tmp_path / "several.npz")


@pytest.mark.parametrize("name", conn.NAMED)
def test_a_connectivity_reads_back_from_its_text(tmp_path, name):
    kept = conn.NAMED[name]()
    assert (conn.parse(conn.describe(kept)) == kept).all()
    (tmp_path / "mask.txt").write_text(conn.describe(kept))
    assert (conn.load(tmp_path / "mask.txt", 9) == kept).all()


@pytest.mark.parametrize("text, message", [("", "names no stage"), ("D[8] E[0] F[1]", "line 1"), ("D[x] G", "line 1"),
                                           ("D[8] E[0]\nD[8] G", "second time"), ("D[2] E[3]", "finer than the stage"),
                                           ("D[8] E[0] D[4]", "stage 4 has no input"), ("D[999] G", "line 1")])
def test_text_that_is_no_connectivity(tmp_path, text, message):
    (tmp_path / "mask.txt").write_text(text)
    with pytest.raises(InputError, match="mask.txt") as error:
        conn.load(tmp_path / "mask.txt")
    assert message in str(error.value)


def test_a_binary_file_named_as_text(tmp_path):
    (tmp_path / "mask.txt").write_bytes(b"\xff\xfe\x00D")
    with pytest.raises(InputError, match="cannot be read as text"):
        conn.load(tmp_path / "mask.txt")
