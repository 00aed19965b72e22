"""Encoders of torchvision and timm by name: their features, and every step of the method on them."""
import sys
import types

import pytest
import torch
from torch import nn

from helpers import TINY, call, folders, only_run, random_batch, randomize
from models import FullyDenseNetwork, SparseMask, connectivity, library_encoders
from models.backbones import BACKBONES, make_backbone
from models.encoder_folding import fold_encoder
from models.inference import for_inference
from models.library_encoders import LibraryEncoder
from models.pruning import prune
from utils.checkpoint import read_checkpoint
from utils.engine import evaluate, search_losses, train_losses, train_step
from utils.errors import InputError
from utils.exporting import Deployed, export_torch
from utils.optimizer import make_optimizer
from utils.runtime import Precision
from VOC12.transforms import IMAGENET, EvalTransform, Sample

try:
    from torchvision import models
except Exception:  # one that does not match torch fails with more than ImportError
    pytest.skip("torchvision cannot be imported", allow_module_level=True)

# Networks that pool without a module, and the module whose output they pool.
PLACES = {"densenet121": (None, "features"), "mnasnet0_5": (None, "layers"), "shufflenet_v2_x0_5": (None, "conv5")}
CPU = torch.device("cpu")
FIVE, FOUR = (32, 16, 8, 4, 2), (32, 16, 8, 4)
# name: (strides, whether PyTorch can export it for images of any size)
ENCODERS = {"resnet18": (FIVE, True), "resnext50_32x4d": (FIVE, True),
            "vgg11": (FIVE, True), "vgg11_bn": (FIVE, True),
            "densenet121": (FIVE, True), "mobilenet_v3_small": (FIVE, True),
            "mnasnet0_5": (FIVE, True), "efficientnet_b0": (FIVE, True),
            "regnet_y_400mf": (FIVE, True), "shufflenet_v2_x0_5": (FIVE, True),
            "convnext_tiny": (FOUR, False), "swin_t": (FOUR, False),
            "googlenet": (FIVE, False)}


def library_features(name, encoder, image):
    """What torchvision's own network, with the encoder's weights, hands to its pooling."""
    net = models.get_model(name, weights=None, **({"init_weights": False} if name == "googlenet" else {})).eval()
    theirs = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    seen = []
    with torch.no_grad():
        for key, value in encoder.net.state_dict().items():
            theirs[key].copy_(value)
        before, after = PLACES.get(name, ("avgpool", None))
        if after is None:
            getattr(net, before).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        else:
            getattr(net, after).register_forward_hook(lambda *arguments: seen.append(arguments[-1].clone()))
        net(image)
    return seen[0]


@pytest.mark.parametrize("name", ENCODERS)
def test_taps_are_the_librarys_features_one_a_resolution(name):
    encoder = make_backbone(name).eval()
    assert encoder.strides == ENCODERS[name][0]
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        taps = encoder(image)
    assert [tap.shape[1] for tap in taps] == list(encoder.channels)
    assert [tuple(tap.shape[2:]) for tap in taps] == [(64 // stride, 96 // stride) for stride in encoder.strides]
    own = library_features(name, encoder, image)
    assert torch.allclose(taps[0], own, atol=1e-5 * float(own.abs().max()))
    with pytest.raises(InputError, match="at least 32x32"):
        encoder(torch.zeros(1, 3, 31, 64))


def step(network, losses):
    """A training step on a random batch. Returns whether the encoder, the decoder and the strengths moved."""
    image, label = random_batch((64, 48), classes=3)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    optimizer = make_optimizer(network.train(), 0.01, 10, 10, 0.9, 0)
    for _ in range(2):
        train_step(network, image, label, losses, optimizer, Precision("float32", CPU))
    moved = {name for name, parameter in network.named_parameters() if not torch.equal(parameter, before[name])}
    assert all(torch.isfinite(parameter).all() for parameter in network.parameters())
    return [any(name.startswith(start) for name in moved) for start in ("backbone.net.", "decoders.", "fc_conv.")]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ENCODERS if name != "densenet121"])  # which takes 17 s
def test_every_step_of_the_method(name, tmp_path):
    """Search, prune, train, evaluate, fold, export."""
    supernet = FullyDenseNetwork(name, depth=4, num_classes=3)
    assert all(step(supernet, lambda *arguments, **options: search_losses(*arguments, 0.01, **options)))
    for l, parameter in enumerate(supernet.strength_parameters()):
        parameter.data.fill_(20.0 if l == supernet.num_stages - 1 else -20.0)
    mask = prune(supernet.final_strengths())
    assert mask[-1].sum() == supernet.num_stages + 1 and not mask[:-1].any()  # of its own inputs all taps and G
    network = SparseMask(mask, name, depth=4, num_classes=3)
    assert all(step(network, train_losses))
    sample = EvalTransform(64)(torch.randint(0, 256, (64, 80, 3), dtype=torch.uint8).numpy(),
                               torch.randint(0, 3, (64, 80), dtype=torch.uint8).numpy())
    confusion = evaluate(network, [Sample(*(part[None] for part in sample))], Precision("float32", CPU))
    assert confusion.sum() == 64 * 80
    if ENCODERS[name][1] and tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13):  # 2.11 fails for poolings
        assert "equal to PyTorch" in export_torch(Deployed(network.eval(), "logits").eval(), tmp_path / "n.pt2", {})


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v2_torchvision", *(
    name for name in ENCODERS if name not in ("vgg11", "convnext_tiny", "swin_t"))])
def test_batch_normalizations_are_folded(name):
    network = SparseMask(connectivity.fcn(len(make_backbone(name).strides)), name, depth=4, num_classes=3).double()
    randomize(network)
    image = torch.randn(1, 3, 65, 70, dtype=torch.float64)
    fast = for_inference(network)
    with torch.no_grad():
        slow = network.eval()(image)
    assert torch.allclose(fast(image), slow, atol=1e-9 * float(slow.abs().max()))
    left = [module for module in fast.__wrapped__.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not left or name == "densenet121"  # its BNs stand before the convolutions


@pytest.mark.parametrize("shared", [False, True])
def test_a_convolution_that_something_else_reads_keeps_its_batch_normalization(shared):
    """Also where the batch normalization changes nothing yet, as in a fresh network."""
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.conv(x)
            return [self.bn(y) + (y if shared else 0)]
    encoder = Encoder().eval()
    fold_encoder(encoder, encoder)
    assert isinstance(encoder.bn, nn.BatchNorm2d) == shared


def test_a_hook_that_is_registered_later_keeps_its_batch_normalization():
    network = SparseMask(connectivity.fcn(), depth=4, num_classes=3)
    assert isinstance(for_inference(network).__wrapped__.backbone.bn1, nn.Identity)
    network.backbone.bn1.register_forward_hook(lambda *_: None)
    assert isinstance(for_inference(network).__wrapped__.backbone.bn1, nn.BatchNorm2d)


def test_a_network_that_fits_is_found_by_its_name_and_one_that_does_not_is_refused():
    assert "resnet50" in BACKBONES and "timm:resnet18" in BACKBONES and "resnet5" not in BACKBONES
    with pytest.raises(InputError, match="near are resnet50"):
        make_backbone("restnet50")
    for name in ("alexnet", "inception_v3", "squeezenet1_1"):
        with pytest.raises(InputError, match="no pyramid of features"):
            make_backbone(name)


class FakeTimm(nn.Module):
    """What timm.create_model(features_only=True) gives, with (N, h, w, C) features."""
    output_fmt = "NHWC"

    def __init__(self):
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in ((3, 4), (4, 6), (6, 8)))

    def forward(self, x):
        features = []
        for convolution in self.convolutions:
            x = convolution(x)
            features.append(x.permute(0, 2, 3, 1))
        return features


@pytest.fixture
def timm(monkeypatch):
    """A module of the name timm, with one network."""
    module = types.ModuleType("timm")
    module.is_model = lambda name: name == "tiny"
    module.list_models = lambda: ["tiny"]
    module.create_model = lambda name, pretrained, features_only: FakeTimm()
    module.get_pretrained_cfg = lambda name, allow_unregistered: types.SimpleNamespace(mean=(0.5,) * 3, std=(0.4,) * 3)
    monkeypatch.setitem(sys.modules, "timm", module)


def test_timm_by_name_with_its_normalization_kept_in_the_checkpoint(timm, data, tmp_path):
    encoder = make_backbone("timm:tiny")
    assert isinstance(encoder, LibraryEncoder) and encoder.strides == (8, 4, 2) and encoder.channels == (8, 6, 4)
    trained = call("train_sparse_mask.py", "--mask_path", "fcn", *TINY, *folders(data), "--max_epoch", 1,
                   "--backbone_name", "timm:tiny", "--exp_path", tmp_path)
    assert trained.code == 0, trained.text
    path = only_run(tmp_path) / "checkpoint_3.pth.tar"
    network = read_checkpoint(path).build()
    assert network.normalization == ((0.5,) * 3, (0.4,) * 3)
    precision = Precision("float32", CPU)
    precision.place(network)
    white = EvalTransform(1)(torch.full((1, 1, 3), 255, dtype=torch.uint8).numpy(), torch.zeros(1, 1).byte().numpy())
    image, _ = precision.batch(Sample(*(part[None] for part in white)))
    assert torch.allclose(image, torch.full_like(image, (1 - 0.5) / 0.4))
    assert call("eval_sparse_mask.py", "--pretrained_model", path, "--gpu", -1, "--n_worker", 0,
                *folders(data, False)).code == 0
    with pytest.raises(InputError, match="did you mean timm:tiny"):
        make_backbone("timm:tinny")


def test_without_timm_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="pip install timm"):
        make_backbone("timm:resnet18")


def test_without_torchvision_it_says_what_to_install_and_what_does_without(monkeypatch):
    library_encoders.torchvision_names.cache_clear()
    monkeypatch.setitem(sys.modules, "torchvision", None)
    try:
        with pytest.raises(InputError, match="torchvision cannot be imported .* install the one that fits"):
            make_backbone("resnet18")
        with pytest.raises(InputError, match="unknown backbone 'nonsense'"):
            make_backbone("nonsense")
        assert make_backbone("mobilenet_v2").strides[0] == 32
    finally:
        library_encoders.torchvision_names.cache_clear()


def test_mobilenets_normalization_is_imagenets_and_older_checkpoints_have_it():
    network = SparseMask(connectivity.fcn(), depth=4, num_classes=3)
    assert network.normalization == IMAGENET
    assert SparseMask(connectivity.fcn(), depth=4, num_classes=3, normalization=None).normalization == IMAGENET


def test_measure_lists_the_taps():
    printed = call("measure.py", "--backbone_name", "resnet18").text
    assert "5 taps" in printed and "E[4]  stride  2    64 channels" in printed


@pytest.mark.slow
def test_the_commands_with_a_librarys_encoder(data, tmp_path):
    options = [*TINY, *folders(data), "--backbone_name", "mobilenet_v3_small", "--max_epoch", 1, "--batch_size", 3]
    assert call("train_sparse_mask.py", "--search", *options, "--exp_path", tmp_path / "search").code == 0
    trained = call("train_sparse_mask.py", "--mask_path", "published", *options, "--exp_path", tmp_path / "train")
    assert trained.code == 0 and "carried over" in trained.text
    run = only_run(tmp_path / "train")
    for command in (["draw.py", run], ["measure.py", run / "checkpoint_2.pth.tar", "--size", 64, 64, "--runs", 1],
                    ["predict.py", data / "img/n5.jpg", "--checkpoint", run / "checkpoint_2.pth.tar", "--gpu", -1,
                     "--out", tmp_path / "out"],
                    ["train_sparse_mask.py", "--resume", run, "--max_epoch", 2],
                    ["draw.py", only_run(tmp_path / "search")]):
        outcome = call(*command)
        assert outcome.code == 0, outcome.text
