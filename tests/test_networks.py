"""The networks: the fast path against the plain one, any size, one image, what is trainable, wrong arguments."""
import copy
import functools

import numpy as np
import pytest
import torch

from benchmarks.plain import plain_forward, plain_resize
from helpers import random_batch, randomize
from models import FullyDenseNetwork, SparseMask, connectivity, folded_search, pruning
from models.folded_search import projected_moments
from models.inference import for_inference
from models.losses import pixel_cross_entropy, resize_logits, total_sparse_loss
from utils.errors import InputError

SIZES = [(32, 32), (33, 47), (64, 97), (80, 40)]


def build(kind, depth=8, classes=5):
    if kind in ("sigmoid", "clamp"):
        return FullyDenseNetwork(depth=depth, num_classes=classes, strengths=kind, noise=False)
    return SparseMask(connectivity.NAMED[kind](), depth=depth, num_classes=classes)


def named(name):
    """For assert_close: its message with a name before it."""
    return lambda message: f"{name}: {message}"


@pytest.mark.parametrize("kind", ["sigmoid", "clamp", "published", "unet", "fcn", "full"])
@pytest.mark.parametrize("size", [(33, 47), (65, 64)])
def test_equals_the_plain_reading_in_values_gradients_and_statistics(kind, size):
    ours = randomize(build(kind)).double().train()
    plain = copy.deepcopy(ours)
    image, label = random_batch(size)
    image = image.double()
    for forward in (ours, functools.partial(plain_forward, plain)):
        loss = pixel_cross_entropy(resize_logits(forward(image), label), label)
        loss.backward()
    for (name, a), (_, b) in zip(ours.named_parameters(), plain.named_parameters(), strict=True):
        if a.requires_grad:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-8, msg=named(name))
    for (name, a), (_, b) in zip(ours.named_buffers(), plain.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=named(name))
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(image), plain_forward(plain.eval(), image), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["clamp", "published"])
def test_three_training_steps_equal_the_plain_ones(kind):
    """What parity can show in single precision for two steps only, for the rounding is amplified."""
    ours = randomize(build(kind)).double().train()
    plain = copy.deepcopy(ours)
    image, label = random_batch((49, 65))
    losses = []
    for network, forward in ((ours, ours), (plain, functools.partial(plain_forward, plain))):
        optimizer = torch.optim.SGD((p for p in network.parameters() if p.requires_grad), lr=0.005, momentum=0.9)
        for _ in range(3):
            strengths = [network.draw_strengths()] if kind == "clamp" else []
            loss = pixel_cross_entropy(resize_logits(forward(image.double(), *strengths), label), label)
            loss = loss + 0.01 * sum(map(total_sparse_loss, strengths))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if kind == "clamp":
                network.clamp_strengths()
            losses.append(loss.item())
    assert losses[0] != pytest.approx(losses[2], abs=1e-4)  # the steps did something
    assert losses[:3] == pytest.approx(losses[3:], abs=1e-6)


@pytest.mark.parametrize("kind", ["sigmoid", "published", "fcn"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("n", [1, 2])
def test_any_size_and_a_batch_of_one_train(kind, size, n):
    network = build(kind, depth=4, classes=3).train()
    image, label = random_batch(size, n=n, classes=3)
    logits = network(image)
    assert logits.shape == (n, 3, (size[0] + 1) // 2, (size[1] + 1) // 2)
    pixel_cross_entropy(resize_logits(logits, label), label).backward()
    gradients = [p.grad for p in network.parameters() if p.requires_grad and p.grad is not None]
    assert all(torch.isfinite(g).all() for g in gradients)
    assert all(torch.isfinite(b).all() for b in network.buffers())
    assert network.eval()(image).shape == logits.shape


@pytest.mark.parametrize("kind", ["sigmoid", "published"])
def test_inference_equals_the_network_and_leaves_it_alone(kind):
    network = randomize(build(kind)).train()
    image, _ = random_batch((49, 64))
    fast = for_inference(network)
    before = copy.deepcopy(network.state_dict())
    logits = fast(image)
    assert not logits.requires_grad and network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(logits, network.eval()(image), rtol=0, atol=1e-4)


@pytest.mark.parametrize("size, chain", [((65, 129), True), ((64, 96), False)])
def test_maps_grow_in_steps_only_where_that_is_exact(size, chain):
    """Grids of 2^k + 1 points contain each other; those of even sizes do not, and go to the last size at once."""
    stage = FullyDenseNetwork(depth=3, num_classes=2).decoders.stage(8)
    sizes = {32: (1, 1), 16: (4, 8), 8: (8, 16), 2: size} if not chain else {
        folded_search.GLOBAL: (1, 1), **{d: ((size[0] - 1) // d + 1, (size[1] - 1) // d + 1) for d in (16, 4)}, 2: size}
    assert folded_search.contains(*(list(sizes.values())[i] for i in (2, 1))) == chain
    maps = {stride: [torch.randn(2, 3, *s, dtype=torch.float64).to(memory_format=torch.channels_last)]
            for stride, s in sizes.items()}
    everything = [x for group in maps.values() for x in group]
    torch.testing.assert_close(folded_search.fuse(stage, dict(maps), size),
                               sum(plain_resize(x, size) for x in everything))
    del maps[2]
    torch.testing.assert_close(folded_search.fuse(stage, dict(maps), size),
                               sum(plain_resize(x, size) for x in everything[:-1]))


def test_moments_equal_those_of_the_projected_rows():
    rows = (torch.randn(200, 6, dtype=torch.float64) + 3).requires_grad_()
    weight = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)
    ours = projected_moments(rows, weight)
    y = rows @ weight.t()
    plain = y.mean(0), y.var(0, unbiased=False)
    slopes = torch.randn(2, 9, dtype=torch.float64)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b)
    gradients = (torch.autograd.grad((torch.stack(m) * slopes).sum(), (rows, weight)) for m in (ours, plain))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["sigmoid", "published"])
def test_bfloat16_loses_no_more_than_the_plain_reading_does(kind):
    """The statistics that are folded into the convolutions would, if they were computed in bfloat16."""
    network = randomize(build(kind)).train()
    image, label = random_batch((65, 65))
    results = []
    for forward, low in ((network, False), (network, True), (functools.partial(plain_forward, network), True)):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = pixel_cross_entropy(resize_logits(forward(image), label), label)
        loss.backward()
        results.append((loss.item(), network.fc_conv.weight.grad.flatten().clone()))
    exact, ours, plain = results
    assert exact[0] != ours[0]  # it did compute in another type
    assert ours[0] == pytest.approx(exact[0], rel=0.1) and ours[0] == pytest.approx(plain[0], rel=5e-3)
    similarity = torch.nn.functional.cosine_similarity
    assert similarity(exact[1], ours[1], dim=0) > similarity(exact[1], plain[1], dim=0) - 5e-3


def test_search_trains_no_bn_scale_and_training_trains_all():
    def trainable(network):
        return {p.requires_grad for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)
                for p in (m.weight, m.bias)}
    assert trainable(build("sigmoid")) == {False}
    assert trainable(build("published")) == {True}


def test_noise_in_training_only_and_drawn_once():
    network = FullyDenseNetwork(depth=4, num_classes=3)
    one, two = network.draw_strengths(), network.draw_strengths()
    assert any((a != b).any() for a, b in zip(one, two, strict=True))
    network.eval()
    assert all((p == 0.5).all() for p in network.draw_strengths())
    image, _ = random_batch()
    with torch.no_grad():
        assert torch.equal(network(image), network(image))


def test_strengths_reach_the_output_and_zero_strength_cuts_a_connection():
    network = build("clamp").eval()
    image, _ = random_batch()
    strengths = [torch.zeros(l + 1, 2) for l in range(9)]
    strengths[8][3, 0] = 0.5
    with torch.no_grad():
        alone = network(image, strengths)
        network.decoders.stage(8).connection(2, 0)[0].weight.normal_()
        assert torch.equal(network(image, strengths), alone)
        network.decoders.stage(8).connection(3, 0)[0].weight.normal_()
        assert not torch.equal(network(image, strengths), alone)


def test_released_names_with_and_without_module():
    network = build("clamp")
    names = set(network.state_dict())
    assert {"backbone.bottlenecks.Bottlenecks_0.LinearBottleneck0_0.conv1.weight", "backbone.bn_last.running_var",
            "decoders.Decoders_8.down_convs.8.0.weight", "decoders.Decoders_8.up_convs.8.1.running_mean",
            "decoders.Decoders_3._weight_", "decoders.Decoders_0.bn.weight", "fc_conv.bias"} <= names
    other = build("clamp")
    other.load_state_dict({"module." + name: value for name, value in network.state_dict().items()})
    state = other.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    pruned = set(build("published").state_dict())
    assert {"decoders.Decoders_8.up_convs.4.weight", "decoders.Decoders_1.up_convs.0.weight"} <= pruned
    assert not any("Decoders_0." in name for name in pruned)


@pytest.mark.parametrize("make", [lambda **options: SparseMask(connectivity.NAMED["hypercolumn"](), **options),
                                  FullyDenseNetwork])
def test_initial_weights(make):
    def weights(init):
        torch.manual_seed(0)
        return make(num_classes=5, init=init).state_dict()

    released, narrower = weights("fan_out"), weights("fan_in")
    assert {name for name in released if not torch.equal(released[name], narrower[name])} == {
        name for name, value in released.items()
        if value.ndim == 4 and not name.startswith("backbone.") and value.shape[0] != value.shape[1]}
    for name, std, fan_in_std in (("decoders.Decoders_8.down_convs.0", (2 / 64) ** 0.5, (2 / 1280) ** 0.5),
                                  ("decoders.Decoders_8.down_convs.7", (2 / 64) ** 0.5, (2 / 16) ** 0.5),
                                  ("fc_conv", (2 / 5) ** 0.5, (2 / 64) ** 0.5)):
        name = next(full for full in (f"{name}.weight", f"{name}.0.weight") if full in released)
        assert released[name].std().item() == pytest.approx(std, rel=0.1)
        assert narrower[name].std().item() == pytest.approx(fan_in_std, rel=0.1)
    assert not released["fc_conv.bias"].any() and not narrower["fc_conv.bias"].any()


@pytest.mark.parametrize("arguments", [{"num_classes": 0}, {"depth": 0}, {"backbone": "vgg"}, {"strengths": "tanh"},
                                       {"init": "zero"},
                                       {"backbone": "no_module:Encoder"}, {"backbone": "models.layers:EPS2"}])
def test_wrong_arguments(arguments):
    with pytest.raises(InputError):
        FullyDenseNetwork(**arguments)


def test_wrong_images():
    network = build("published").eval()
    with pytest.raises(InputError, match="31x40"):
        network(torch.zeros(1, 3, 31, 40))
    with pytest.raises(InputError, match=r"\(1, 1, 40, 40\)"):
        network(torch.zeros(1, 1, 40, 40))


def test_wrong_connectivities_name_stage_and_source():
    with pytest.raises(InputError, match="shape"):
        SparseMask(np.zeros((9, 9), bool))
    with pytest.raises(InputError, match="finest"):
        SparseMask(np.zeros((9, 9, 2), bool))
    dangling = connectivity.fcn()
    dangling[8, 4, 1] = True
    with pytest.raises(InputError, match=r"stage 8 reads D\[3\]"):
        SparseMask(dangling)
    unread = connectivity.fcn()
    unread[2, 0, 0] = True
    with pytest.warns(UserWarning, match="stage 2"):
        SparseMask(unread, depth=4)


class TinyEncoder(torch.nn.Module):
    """Three taps: what someone's own encoder has to offer."""
    channels, strides = (12, 8, 4), (8, 4, 2)

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Conv2d(i, o, 3, 2, 1) for i, o in ((3, 4), (4, 8), (8, 12)))

    def forward(self, image):
        taps = []
        for layer in self.layers:
            image = layer(image)
            taps.append(image)
        return taps[::-1]


def test_own_encoder():
    name = f"{__name__}:TinyEncoder"
    network = FullyDenseNetwork(name, depth=4, num_classes=2)
    assert [p.shape for p in network.strength_parameters()] == [(1, 2), (2, 2), (3, 2)]
    mask = pruning.prune([p.detach().numpy() + 0.5 for p in network.strength_parameters()])
    assert SparseMask(mask, name, depth=4, num_classes=2)(torch.zeros(1, 3, 32, 32)).shape == (1, 2, 16, 16)
