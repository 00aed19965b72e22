"""Weights for an encoder in every spelling and every wrapper, on a network of a few layers, and what is refused."""
import warnings

import pytest
import torch
from torch import nn

from utils.errors import InputError
from utils.pretrained import EncoderWeights, load_encoder

COUNTER = "num_batches_tracked"


def block(width, names):
    first, second = nn.Conv2d(width, width, 3, bias=False), nn.Conv2d(width, width, 3, bias=False)
    return nn.ModuleDict(dict(zip(names, (first, nn.BatchNorm2d(width), second, nn.BatchNorm2d(width)), strict=True)))


def network(blocks=2, seed=1, width=4, head=False):
    """An encoder with names as torchvision's ResNets have them; with a head, a classifier. All blocks are alike."""
    torch.manual_seed(seed)
    layer1 = nn.Sequential(*[block(width, ("conv1", "bn1", "conv2", "bn2")) for _ in range(blocks)])
    layers = {"conv1": nn.Conv2d(3, width, 3), "bn1": nn.BatchNorm2d(width), "layer1": layer1,
              "layer2": nn.Sequential(nn.Conv2d(width, 8, 1))}
    return with_random_bn(nn.ModuleDict({**layers, **({"fc": nn.Linear(8, 5)} if head else {})}))


def foreign():
    """The classifier with names of another library."""
    torch.manual_seed(1)
    body = nn.ModuleDict({f"block{i}": block(4, ("_conv0", "_bn0", "_conv1", "_bn1")) for i in range(2)})
    return with_random_bn(nn.ModuleDict({"stem": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), "body": body,
                                         "tail": nn.Conv2d(4, 8, 1), "head": nn.Linear(8, 5)}))


def with_random_bn(module):
    for name, tensor in module.state_dict().items():
        if not name.endswith(COUNTER):
            tensor.uniform_(0.5, 1.5)
    return module


def load(content, encoder=None, partial=False):
    """(lines, encoder): `content` loaded into an encoder that had other weights."""
    encoder = encoder or network(seed=2)
    return load_encoder(encoder, EncoderWeights("FILE", content, "tiny"), partial), encoder


def refuse(content, encoder=None, partial=False):
    with pytest.raises(InputError) as caught:
        load(content, encoder, partial)
    return str(caught.value)


def tensors(module):
    return [value for name, value in module.state_dict().items() if not name.endswith(COUNTER)]


def is_loaded(encoder, source):
    """Whether the encoder has the tensors of a network that begins with the same layers."""
    pairs = list(zip(tensors(encoder), tensors(source), strict=False))
    return len(pairs) == len(tensors(encoder)) and all(torch.equal(a, b) for a, b in pairs)


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def partly_compiled(module):
    name = list(module)[2]
    module[name] = torch.compile(module[name])  # compiles nothing before it is called
    return module.state_dict()


WRAPPED = {
    "nothing": lambda m: m.state_dict(),
    "DataParallel": lambda m: nn.DataParallel(m).state_dict(),
    "compile": lambda m: torch.compile(m).state_dict(),
    "compile of a part": partly_compiled,
    "compile in DataParallel": lambda m: {"model": nn.DataParallel(torch.compile(m)).state_dict(), "epoch": 3},
    "AveragedModel": lambda m: torch.optim.swa_utils.AveragedModel(m).state_dict(),
    "Lightning": lambda m: {"state_dict": prefixed("model.encoder.", m.state_dict()), "callbacks": {"x": {"best": 1}},
                            "optimizer_states": [{"state": {}}]},
    "net": lambda m: {"net": m.state_dict(), "epoch": 3},
    "a dict in a dict": lambda m: {"checkpoint": {"params": prefixed("backbone.", m.state_dict())}},
    "with an optimizer": lambda m: {"model_state_dict": m.state_dict(),
                                    "optimizer": {"state": {0: {"exp_avg": torch.zeros(4, 3, 3, 3)}}}},
    "beside a decoder": lambda m: {"decoder": {"conv1.weight": torch.zeros(2)}, "encoder": m.state_dict()},
    "before a decoder": lambda m: {**prefixed("encoder.", m.state_dict()), "decoder.conv1.weight": torch.zeros(2)},
    "without BN counters": lambda m: {k: v for k, v in m.state_dict().items() if not k.endswith(COUNTER)},
    "EMA beside it": lambda m: {"state_dict": network(seed=3, head=True).state_dict(),
                                "state_dict_ema": m.state_dict()},
    "EMA in it": lambda m: {**prefixed("model.", network(seed=3).state_dict()),
                            **prefixed("ema_model.module.", m.state_dict())},
    "twice": lambda m: {"model": m.state_dict(), "best": {k: v.clone() for k, v in m.state_dict().items()}}}


@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("make", [lambda: network(head=True), foreign], ids=["own names", "other names"])
def test_every_wrapper_and_spelling(wrapper, make):
    if make is foreign and wrapper.startswith("EMA"):
        pytest.skip("the copy beside it has the encoder's own names")
    source = make()
    before = [value.clone() for value in tensors(source)]
    lines, encoder = load(WRAPPED[wrapper](source))
    assert all(torch.equal(a, b) for a, b in zip(tensors(encoder), before, strict=False))
    assert "28 of 28 tensors from FILE" in lines[0]
    assert ("by structure" in lines[0] and "stem.0 = conv1, ..., " in lines[0]) == (make is foreign)
    assert not any("warning" in line for line in lines)


def test_where_it_was_is_said():
    lines, _ = load(WRAPPED["compile in DataParallel"](network(head=True)))
    assert lines == ["encoder tiny: 28 of 28 tensors from FILE, matched by name under 'model', without _orig_mod and "
                     "module", "2 tensors of the file are not the encoder's: fc.weight, fc.bias"]
    lines, _ = load(WRAPPED["Lightning"](network()))
    assert lines == ["encoder tiny: 28 of 28 tensors from FILE, matched by name under 'state_dict', behind "
                     "'model.encoder.'"]


def test_an_encoder_that_holds_its_layers_as_net_or_flattened():
    source = network(head=True)
    for encoder in (nn.ModuleDict({"net": network(seed=2)}), nn.ModuleDict({"net": flattened(network(seed=2))})):
        lines, _ = load({"model": source.state_dict()}, encoder)
        assert is_loaded(encoder, source) and "by name under 'model'" in lines[0]


def flattened(module):
    """As timm's features_only: layer1_0 for layer1.0."""
    children = {}
    for name, child in module.items():
        inner = child.named_children() if isinstance(child, nn.Sequential) else [("", child)]
        children.update({f"{name}_{i}" if i else name: layer for i, layer in inner})
    return nn.ModuleDict(children)


def test_half_precision_is_converted():
    source = network(head=True)
    _, encoder = load(source.half().state_dict())
    assert tensors(encoder)[0].dtype == torch.float32 and is_loaded(encoder, source.float())


def test_two_copies_with_different_values_are_refused():
    content = {**prefixed("encoder_q.", network(seed=3).state_dict()),
               **prefixed("encoder_k.", network(seed=4).state_dict())}
    message = refuse(content)
    assert "several times" in message and "'encoder_q.'" in message and "'encoder_k.'" in message


def exchanged(state, first, second):
    """The state dict with the positions of two modules exchanged: the names keep their tensors."""
    names = list(state)
    first, second = ([name for name in names if name.startswith(part)] for part in (first, second))
    order = {**dict(zip(first, second, strict=True)), **dict(zip(second, first, strict=True))}
    return {order.get(name, name): state[order.get(name, name)] for name in names}


@pytest.mark.parametrize("pair", [("body.block0.", "body.block1."), ("body.block0._conv0", "body.block0._conv1"),
                                  ("body.block0._conv0", "body.block1._conv0"),
                                  ("body.block0._bn0", "body.block1._bn1"), ("stem.1", "body.block1._bn1")])
def test_an_order_that_is_not_that_of_the_names_is_refused(pair):
    state = foreign().state_dict()
    assert "none of the 30 tensors" in refuse(exchanged(state, *pair))


def test_names_that_say_nothing_about_the_order_are_refused():
    def attention(names):
        return nn.ModuleDict({name: nn.Linear(4, 4) for name in names})

    numbered, letters = attention(["fc1", "fc2", "fc3"]), attention("qkv")
    encoder, other = nn.ModuleDict({"block": letters}), nn.ModuleDict({"layer": letters, "head": nn.Linear(4, 2)})
    assert "by name" in load(other.state_dict(), encoder)[0][0]  # its names are the last components
    for content, encoder in ((attention("kqv"), numbered), (numbered, nn.ModuleDict({"block": letters}))):
        assert "none of the 6 tensors" in refuse(content.state_dict(), encoder)
    renumbered = attention(["linear_1", "linear_2", "linear_10"])
    assert "by structure" in load(renumbered.state_dict(), numbered)[0][0]


def test_layers_that_are_in_several_places_are_refused():
    def convolutions(count, name):
        return nn.ModuleDict({f"{name}{i}": nn.Conv2d(4, 4, 3) for i in range(count)})

    assert "by structure" in load(convolutions(3, "a").state_dict(), convolutions(3, "b"))[0][0]
    assert "none of the 8 tensors" in refuse(convolutions(4, "a").state_dict(), convolutions(3, "b"))


def test_another_shape_or_a_layer_more_is_no_structure():
    other = foreign()
    other["tail"] = nn.Conv2d(4, 8, 3)
    assert "none of the 30 tensors" in refuse(other.state_dict())
    assert "none of the 30 tensors" in refuse(foreign().state_dict(), network(blocks=3))


def test_a_file_that_lacks_some_is_refused_unless_that_is_accepted():
    source = network(head=True)
    state = source.state_dict()
    del state["layer2.0.weight"]
    state["bn1.weight"] = torch.zeros(3)
    content = {"model": prefixed("module.", state)}
    assert refuse(content) == (
        "only 26 of the 28 tensors of the encoder tiny are in FILE: it has 29 tensors under 'model' behind module "
        "(conv1.weight 4x3x3x3, conv1.bias 4, ...), but bn1.weight is 3 there and 4 in the encoder; give weights of "
        "that encoder, or accept that the others stay random")
    lines, encoder = load(content, partial=True)
    assert "26 of 28" in lines[0] and "2 tensors of the encoder" in lines[1] and "stay random: bn1.weight" in lines[1]
    assert "3 tensors of the file" in lines[2] and torch.equal(encoder["layer2"][0].bias, source["layer2"][0].bias)


def test_the_weights_of_a_longer_network_are_refused():
    """As a ResNet-34's for a ResNet-18, which has all the names of the shorter one, in the same shapes."""
    state = network(blocks=3, head=True).state_dict()
    message = refuse(state)
    assert "10 within the encoder are not its own, layer1.2.conv1.weight" in message
    assert "28 of 28" in load(state, partial=True)[0][0]


def test_what_a_file_of_another_network_looks_like_is_said():
    names = [f"layer{stage}.{i}.conv{k}.weight" for stage, count in enumerate((3, 4, 6, 3), 1) for i in range(count)
             for k in (1, 2, 3)]
    state = {"conv1.weight": torch.zeros(64, 3, 7, 7), **{name: torch.zeros(1) for name in names}}
    message = refuse({"state_dict": state}, partial=True)
    assert "none of the 49 tensors in FILE fits the encoder tiny" in message
    assert "49 tensors under 'state_dict' and looks like a ResNet-50 (conv1.weight 64x3x7x7" in message


def test_an_encoder_without_weights_is_refused():
    assert "none of the 28 tensors" in refuse(network().state_dict(), nn.Identity())


def test_odd_content_is_refused():
    loop = {"epoch": 3}
    loop["again"] = loop
    dots = {".".join("a" * 100_000): torch.zeros(1), "." * 400: torch.zeros(1)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
    state = network().state_dict()
    for content in (loop, dots, {"": torch.zeros(())}, {"conv1.weight": nested}):
        assert "none of the" in refuse(content)
    state["conv1.weight"] = state["conv1.weight"].to_sparse()
    assert "conv1.weight is missing" in refuse(state)
    for value, word in ((torch.full((4, 3, 3, 3), float("nan")), "NaN"), (torch.ones(4, 3, 3, 3, dtype=int), "int64")):
        state["conv1.weight"] = value
        assert word in refuse(state, partial=True)
