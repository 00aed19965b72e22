"""Parts of a network by name: what is wrong with one is a sentence, and what somebody changes is never left out."""
import copy
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from helpers import random_batch, randomize
from models import FullyDenseNetwork, SparseMask, connectivity, decoder, folded_search, inference
from models.backbones import make_backbone
from models.components import find, make
from models.decoder import Stage
from models.inference import folded, for_inference
from models.losses import find_regularizer, l1_loss
from utils.checkpoint import read_checkpoint
from utils.errors import InputError

KNOWN = {"known": nn.Identity}


class Encoder(nn.Module):
    """Two features; a subclass spoils something."""
    channels, strides = (6, 4), (4, 2)
    order, padding = -1, 1

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, self.padding)])

    def forward(self, image):
        first = self.layers[0](image)
        return [first, self.layers[1](first)][::self.order]


def variant(**attributes):
    return type("Variant", (Encoder,), attributes)


ENCODERS = {
    "shallow first": (variant(channels=(4, 6), strides=(2, 4), order=1), "do not fall"),
    "features in another order": (variant(order=1), "both are listed deepest first"),
    "other channels": (variant(channels=(7, 4)), "channels"),
    "one stride, two sizes": (variant(strides=(4, 4)), "features of one stride need one size"),
    "no strides": (variant(strides=()), "must publish"),
    "a dict of features": (variant(forward=lambda self, image: {"a": image}), "returns no list of features"),
}
# One stride, of which floor and ceil give two sizes: only an odd image shows it.
ROUNDED = variant(channels=(4, 3), strides=(2, 2),
                  forward=lambda self, image: [self.layers[0](image), nn.functional.max_pool2d(image, 2)])


@pytest.fixture
def module():
    """An empty module `own_parts` that can be imported by name."""
    module = types.ModuleType("own_parts")
    sys.modules["own_parts"] = module
    yield module
    del sys.modules["own_parts"]


@pytest.mark.parametrize("name, words", [("unknown", "known are known"), ("no_module:x", "cannot be imported"),
                                         ("own_parts:missing", "cannot be imported"), (".:x", "cannot be imported"),
                                         ("own_parts:number", "is a int")])
def test_a_name_that_finds_nothing(module, name, words):
    module.number = 3
    with pytest.raises(InputError, match=words) as error:
        find("head", name, KNOWN)
    assert error.value.about == "head"


@pytest.mark.parametrize("factory, words", [(lambda: nn.Identity(), "with 2 arguments"),
                                            (lambda a, b: 3, "gives a int")])
def test_a_factory_that_does_not_fit(module, factory, words):
    module.factory = factory
    with pytest.raises(InputError, match=words) as error:
        make("head", "own_parts:factory", KNOWN, 4, 3)
    assert error.value.about == "head"


def test_a_bug_in_a_factory_keeps_its_traceback(module):
    def factory(depth, classes):
        return None + depth
    module.factory = factory
    with pytest.raises(TypeError, match="unsupported operand"):
        make("head", "own_parts:factory", KNOWN, 4, 3)


@pytest.mark.parametrize("arguments", [{"fusion": "own_parts:part"}, {"strengths": "own_parts:part"}])
def test_a_part_of_another_class_is_refused(module, arguments):
    module.part = lambda *_: nn.Identity()
    with pytest.raises(InputError, match="it has to give a models"):
        FullyDenseNetwork(depth=4, num_classes=3, **arguments)


@pytest.mark.parametrize("encoder, words", [*ENCODERS.values(), (ROUNDED, "one stride need one size")],
                         ids=[*ENCODERS, "one stride, two roundings"])
def test_an_encoder_that_is_not_what_it_publishes(module, encoder, words):
    module.Encoder = encoder
    with pytest.raises(InputError, match=words) as error:
        make_backbone("own_parts:Encoder")
    assert error.value.about == "backbone"


def test_trying_an_encoder_changes_nothing(module):
    class Drawing(Encoder):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.norm.eval()

        def forward(self, image):
            return super().forward(self.norm(image) + torch.rand_like(image))
    module.Encoder = Drawing
    torch.manual_seed(0)
    Drawing()
    expected = torch.rand(3)
    torch.manual_seed(0)
    backbone = make_backbone("own_parts:Encoder")
    assert torch.equal(torch.rand(3), expected)
    assert backbone.training and not backbone.norm.training and backbone.norm.num_batches_tracked == 0


def test_an_encoder_for_images_of_one_size_is_not_tried(module):
    class Fixed(Encoder):
        def forward(self, image):
            if image.shape[2] != 56:
                raise ValueError("56 pixels, please")
            return super().forward(image)
    module.Encoder = Fixed
    mask = connectivity.unet(2)
    assert SparseMask(mask, "own_parts:Encoder", 4, 3)(torch.zeros(1, 3, 56, 56)).shape == (1, 3, 28, 28)


@pytest.mark.parametrize("function, words", [(lambda: 0, "cannot be called"), (lambda p: 3.0, "gives a float"),
                                             (lambda p: p[0], "scalar tensor")])
def test_a_regularizer_that_does_not_fit(module, function, words):
    module.function = function
    with pytest.raises(InputError, match=words) as error:
        find_regularizer("own_parts:function")
    assert error.value.about == "regularizer"


def test_l1_is_the_sum_of_the_stages_means():
    strengths = [torch.tensor([[0.5, 0.1]]), torch.tensor([[1.0, 0.0], [0.0, 0.6]])]
    assert l1_loss(strengths).item() == pytest.approx(0.3 + 0.4)
    assert find_regularizer("l1") is l1_loss


def small_search():
    return randomize(FullyDenseNetwork(depth=4, num_classes=3, noise=False)).double().eval()


def by_modules(network, image):
    return network.head(decoder.Decoder.forward(network.decoders, network.backbone(image), network.draw_strengths()))


CHANGES = {
    "a bias": lambda network: setattr(network.decoders.stage(8).connection(0, 0)[0], "bias",
                                      nn.Parameter(torch.full((4,), 9.0, dtype=torch.float64))),
    "another eps": lambda network: setattr(network.decoders.stage(3).connection(1, 0)[1], "eps", 0.5),
    "a norm in training mode": lambda network: network.decoders.stage(3).connection(1, 0)[1].train(),
    "a method of an instance": lambda network: setattr(network.decoders.stage(8).connection(3, 0)[0], "forward",
                                                       lambda x: x[:, :4] * 9),
    "another class": lambda network: setattr(network.decoders.stage(8).connection(3, 0)[0], "__class__",
                                             type("Scaled", (nn.Conv2d,), {"forward": lambda self, x: x[:, :4] * 9})),
    "a hook": lambda network: network.decoders.stage(8).connection(3, 0).register_forward_hook(lambda m, x, y: 9 * y),
    "a parametrization": lambda network: nn.utils.parametrizations.weight_norm(
        network.decoders.stage(8).connection(3, 0)[0]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_is_changed_in_a_supernet_takes_the_modules(change):
    network = small_search()
    image = random_batch((40, 48))[0].double()
    assert folded_search.applies(network.decoders)
    with torch.no_grad():
        torch.testing.assert_close(network(image), by_modules(network, image))
        change(network)
        assert not folded_search.applies(network.decoders)
        states = copy.deepcopy(network.state_dict())
        result = network(image)
        network.load_state_dict(states)  # a norm in training mode has moved
        torch.testing.assert_close(result, by_modules(network, image))


@pytest.fixture
def edited(monkeypatch):
    """Edits a method of Stage, as somebody does in models/decoder.py."""
    caches = folded_search.computes_the_equation, inference.scales_pass_through
    for cache in caches:
        cache.cache_clear()
    yield lambda name, make: monkeypatch.setattr(Stage, name, make(getattr(Stage, name)))
    monkeypatch.undo()
    for cache in caches:
        cache.cache_clear()


def test_an_edited_equation_is_what_the_search_computes(edited):
    edited("connect", lambda old: lambda self, place, features, p=None: 3 * old(self, place, features, p).tanh())
    with pytest.warns(UserWarning, match="slower way"):
        network = small_search()
    image = random_batch((40, 48))[0].double()
    with torch.no_grad():
        torch.testing.assert_close(network(image), by_modules(network, image))


def test_an_edited_equation_is_what_inference_computes(edited):
    edited("resize", lambda old: lambda self, *arguments: old(self, *arguments).tanh())
    network = randomize(SparseMask(connectivity.published(), depth=4, num_classes=3)).double().eval()
    image = random_batch((40, 48))[0].double()
    with torch.no_grad():
        torch.testing.assert_close(for_inference(network)(image), network(image))


def shared(network):
    network.decoders.stage(3).up_convs["0"] = network.decoders.stage(1).up_convs["0"]


FOLDS = {
    "shared by two stages": shared,
    "a hook": lambda network: network.decoders.stage(8).connection(0, 0).register_forward_hook(lambda m, x, y: 9 * y),
    "another norm": lambda network: setattr(network.decoders.stage(8), "bn", nn.GroupNorm(2, 4).double()),
    "a parametrization": lambda network: nn.utils.parametrizations.weight_norm(
        network.decoders.stage(8).connection(0, 0)),
}


@pytest.mark.parametrize("change", FOLDS.values(), ids=FOLDS)
def test_whatever_is_changed_in_a_trained_network_is_not_folded(change):
    network = randomize(SparseMask(connectivity.published(), depth=4, num_classes=3)).double().eval()
    assert all(isinstance(stage.bn, nn.Identity) for stage in folded(network).decoders.values())
    change(network)
    image = random_batch((40, 48))[0].double()
    with torch.no_grad():
        torch.testing.assert_close(for_inference(network)(image), network(image))


MODELS = {
    "a part that is a tensor": ({"head": torch.tensor(3)}, None),
    "an unknown part": ({"head": "foo"}, "names the head 'foo'"),
    "a sparse connectivity": ({"connectivity": connectivity.fcn()}, None),
    "a connectivity of another shape": ({"connectivity": torch.ones(9, 8, 2, dtype=torch.bool)}, r"\(9, 8, 2\)"),
    "a huge depth": ({"depth": 4096}, "depth is 4096"),
    "a depth that is text": ({"depth": "4"}, "a depth of 4"),
    "no classes": ({"num_classes": 0}, "0 classes"),
}


@pytest.mark.parametrize("model, words", MODELS.values(), ids=MODELS)
def test_a_wrong_description_in_a_checkpoint_is_one_sentence_or_unused(tmp_path, model, words):
    network = SparseMask(connectivity.fcn(), depth=4, num_classes=3)
    if isinstance(model.get("connectivity"), np.ndarray):
        model = {"connectivity": torch.from_numpy(model["connectivity"]).to_sparse()}
    torch.save({"state_dict": network.state_dict(), "model": {"backbone": "mobilenet_v2", **model}}, tmp_path / "c")
    if words is None:
        assert (read_checkpoint(tmp_path / "c").build().connectivity == connectivity.fcn()).all()
    else:
        with pytest.raises(InputError, match=words) as error:
            read_checkpoint(tmp_path / "c")
        assert str(tmp_path / "c") in str(error.value)


@pytest.mark.parametrize("make_network, kind", [
    (lambda: SparseMask(connectivity.published(), depth=4, num_classes=3), "train"),
    (lambda: FullyDenseNetwork(depth=4, num_classes=3, strengths="clamp"), "search")])
def test_checkpoints_from_before_the_parts_had_names_load(tmp_path, make_network, kind):
    network = make_network()
    model = {"backbone": "mobilenet_v2", "depth": 4, "num_classes": 3}
    model.update({"connectivity": torch.from_numpy(network.connectivity)} if kind == "train" else
                 {"strengths": "clamp"})
    torch.save({"iter": 1, "model": model, "state_dict": network.state_dict()}, tmp_path / "c")
    found = read_checkpoint(tmp_path / "c")
    assert found.kind == kind
    built = found.build()
    assert all(torch.equal(value, built.state_dict()[name]) for name, value in network.state_dict().items())
