"""Reading and writing checkpoints: released files, encoder files, hostile and broken ones."""
import os

import numpy as np
import pytest
import torch

from helpers import random_batch
from models import FullyDenseNetwork, SparseMask, connectivity
from utils.checkpoint import read_checkpoint
from utils.errors import InputError
from utils.files import write_atomically
from utils.tensor_files import save_file


def released(network, path):
    """A file as the released code wrote it."""
    save_file(path, {"iter": 7, "state_dict": {"module." + k: v for k, v in network.state_dict().items()},
                     "optimizer": {"state": {}, "param_groups": []}})
    return path


def logits(network):
    with torch.no_grad():
        return network.eval()(random_batch()[0])


@pytest.mark.parametrize("build", [
    lambda: FullyDenseNetwork(depth=4, num_classes=3, strengths="clamp"),
    lambda: FullyDenseNetwork("mobilenet_v2_torchvision", depth=4, num_classes=3),
    lambda: SparseMask(connectivity.published(), depth=4, num_classes=3),
    lambda: SparseMask(connectivity.unet(), "mobilenet_v2_torchvision", depth=8, num_classes=2)])
def test_a_released_checkpoint_is_rebuilt_from_its_names_alone(tmp_path, build):
    network = build()
    checkpoint = read_checkpoint(released(network, tmp_path / "released.pth.tar"))
    assert checkpoint.kind == ("search" if isinstance(network, FullyDenseNetwork) else "train")
    assert (checkpoint.depth, checkpoint.num_classes) == (network.depth, network.num_classes)
    rebuilt = checkpoint.build()
    assert type(rebuilt) is type(network) and torch.equal(logits(rebuilt), logits(network))


def test_the_old_file_format_of_torch_1_0_is_read(tmp_path):
    network = SparseMask(connectivity.fcn(), depth=4, num_classes=3)
    state = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save({"iter": 1, "state_dict": state}, tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False)
    assert torch.equal(logits(read_checkpoint(tmp_path / "old.pth.tar").build()), logits(network))


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_hostile_checkpoint_runs_nothing(tmp_path):
    torch.save({"state_dict": {}, "x": Hostile(tmp_path / "made")}, tmp_path / "hostile.pth.tar")
    with pytest.raises(InputError, match="could run code"):
        read_checkpoint(tmp_path / "hostile.pth.tar")
    assert not (tmp_path / "made").exists()


def test_a_hostile_mask_runs_nothing(tmp_path):
    np.save(tmp_path / "mask.npy", np.array([Hostile(tmp_path / "made")]), allow_pickle=True)
    with pytest.raises(InputError, match="mask.npy"):
        connectivity.load(tmp_path / "mask.npy")
    assert not (tmp_path / "made").exists()


def test_a_checkpoint_cannot_choose_an_encoder_to_import(tmp_path):
    network = SparseMask(connectivity.fcn(), depth=4, num_classes=3)
    content = {"state_dict": network.state_dict(), "model": {"backbone": "some_module:Encoder"}}
    torch.save(content, tmp_path / "file")
    checkpoint = read_checkpoint(tmp_path / "file")
    for given in ({}, {"backbone": "mobilenet_v2"}):
        with pytest.raises(InputError, match="name it too: some_module:Encoder"):
            checkpoint.require_parts(given)
    with pytest.raises(InputError, match="has to be imported"):
        checkpoint.build()
    checkpoint.require_parts({"backbone": "some_module:Encoder"})


def test_a_given_backbone_must_be_the_files(tmp_path):
    checkpoint = read_checkpoint(released(SparseMask(connectivity.fcn(), "mobilenet_v2_torchvision", 4, 3),
                                          tmp_path / "file"))
    for name in (None, "mobilenet_v2"):  # the released command lines name the family, whatever the layout
        checkpoint.require_parts({"backbone": name})
    with pytest.raises(InputError, match="unknown backbone 'vgg'"):
        checkpoint.require_parts({"backbone": "vgg"})
    with pytest.raises(InputError, match="has the backbone mobilenet_v2_torchvision"):
        checkpoint.require_parts({"backbone": "my_module:Encoder"})


def test_a_name_in_a_file_makes_no_huge_array(tmp_path):
    for stage, classes in ((999, 3), (99999999, 3), (8, 10 ** 9)):
        state = {f"decoders.Decoders_{stage}.down_convs.0.weight": torch.zeros(4, 1280, 1, 1),
                 "fc_conv.weight": torch.zeros(1, 4, 1, 1).expand(classes, 4, 1, 1)}
        torch.save(state, tmp_path / "file")
        with pytest.raises(InputError, match="is no checkpoint"):
            read_checkpoint(tmp_path / "file")


def test_random_bytes_are_not_called_hostile(tmp_path):
    (tmp_path / "file").write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(InputError, match="no file of PyTorch's"):
        read_checkpoint(tmp_path / "file")


@pytest.mark.parametrize("cut", [0, 1, 100, 5000])
def test_cut_files(tmp_path, cut):
    file = released(SparseMask(connectivity.fcn(), depth=4, num_classes=3), tmp_path / "file")
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(InputError, match="cannot be read"):
        read_checkpoint(file)


def test_tensors_that_do_not_fit_are_named(tmp_path):
    network = SparseMask(connectivity.fcn(), depth=4, num_classes=3)
    state = network.state_dict()
    del state["backbone.conv1.weight"]
    torch.save({"state_dict": state}, tmp_path / "file")
    with pytest.raises(InputError, match="lacks 1 tensors, backbone.conv1.weight"):
        read_checkpoint(tmp_path / "file").build()


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        with write_atomically(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        save_file(tmp_path / "file" / "checkpoint", {})
