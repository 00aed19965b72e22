"""What a GPU needs, as far as a CPU can show it: no waiting in a step, variances in TF32."""
import contextlib
import types

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import bench
from helpers import call, random_batch
from models import FullyDenseNetwork, SparseMask, connectivity
from models.folded_search import Moments, projected_moments
from models.layers import EPS
from models.losses import pixel_cross_entropy
from models.sync_bn import synchronize_bn
from utils import engine
from utils.engine import Trainer, evaluate, search_losses, train_losses, train_step
from utils.errors import InputError
from utils.optimizer import make_optimizer
from utils.run import Schedule, TrainingState
from utils.runtime import Precision, start_reading, tuned_convolutions
from VOC12.loading import join_equal
from VOC12.transforms import IMAGENET, Sample, of_bytes

aten = torch.ops.aten
GPU = torch.device("meta")  # stands for one: tensors without values, whose operators PyTorch dispatches all the same
SELECTING = {aten.nonzero, aten.bincount, aten.masked_select, aten._unique2, aten.equal, aten.is_nonzero}
FROM_HOST = {torch.tensor, torch.as_tensor, torch.Tensor.new_tensor}


def on_gpu(*values):
    return any(isinstance(value, torch.Tensor) and value.device == GPU for value in values)


class Waits(TorchDispatchMode):
    """Collects, by name, the operators in which the host would wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet is aten._local_scalar_dense and on_gpu(*args):
            self.found.append("item")
            return 1.0
        result = func(*args, **kwargs)
        copied = packet is aten._to_copy and not kwargs.get("non_blocking") or \
            packet is aten.copy_ and args[2:] != (True,) and not kwargs.get("non_blocking")
        if copied and len({x.device for x in (*args, result) if isinstance(x, torch.Tensor)}) > 1 or \
                packet in SELECTING and on_gpu(*args):
            self.found.append(str(packet))
        return result


class Constants(TorchFunctionMode):
    """Adds to a Waits the tensors that are made of Python's numbers on the GPU: blocking copies."""

    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        if func in FROM_HOST and on_gpu(result):
            self.waits.found.append(func.__name__)
        return result


class Batches(list):
    """Two Samples of each of `count` batches, with padding: a loader."""
    def __init__(self, count, size=(40, 48)):
        super().__init__(Sample(torch.zeros(2, *size, 3, dtype=torch.uint8), torch.zeros(2, *size, dtype=torch.uint8),
                                torch.tensor([[0, 0, *size], [4, 6, 40, 40]])) for _ in range(count))
        self.batch_sampler = type("Sampler", (), {"__len__": lambda self: count})()


@pytest.fixture
def waits(monkeypatch):
    """A Waits that is in force, where the reading of a step counts as "read"."""
    found = Waits()

    def reading(tensor):
        def read():
            found.found.append("read")
            return torch.ones(tensor.shape)
        return read
    monkeypatch.setattr(engine, "start_reading", reading)
    with Constants(found), found:
        yield found


def make_trainer(kind, loader, monkeypatch, sync_bn=False, class_weights=None):
    sgd = torch.optim.SGD  # what the stand-in for a GPU does not have: fused, and autocast
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch.optim, "SGD", lambda groups, **given: sgd(groups, **{**given, "fused": False}))
    network = FullyDenseNetwork(depth=4, num_classes=3) if kind == "search" else \
        SparseMask(connectivity.published(), depth=4, num_classes=3)
    if sync_bn:
        synchronize_bn(network)
    precision = Precision("float32", GPU)
    precision.place(network)
    state = TrainingState(network, make_optimizer(network, 0.1, 10, 1, 0.9, 4e-5), Schedule(9, 0.9), precision)

    def losses(*arguments, **given):
        return search_losses(*arguments, 0.01, **given) if kind == "search" else train_losses(*arguments, **given)
    return Trainer(state, losses, loader, None, save=None, class_weights=class_weights)


@pytest.mark.parametrize("kind, options", [
    ("search", {}), ("train", {}), ("train", {"sync_bn": True, "class_weights": torch.ones(3, device=GPU)})])
def test_a_step_waits_for_the_gpu_once(waits, monkeypatch, kind, options):
    trainer = make_trainer(kind, Batches(2), monkeypatch, **options)
    of_bytes(IMAGENET, GPU, torch.float32)  # once in a run
    waits.found.clear()
    trainer.run_epoch(lambda: False)
    assert waits.found == ["read"] * 2


def test_an_evaluation_does_not_wait_for_the_gpu(waits):
    network = SparseMask(connectivity.published(), depth=4, num_classes=3).to(GPU)
    of_bytes(IMAGENET, GPU, torch.float32)
    waits.found.clear()
    evaluate(network, Batches(3), Precision("float32", GPU), batch_size=4)
    assert waits.found == []


def test_what_would_wait_is_counted(waits):
    x = torch.zeros(3, device=GPU)
    x.sum().item(), torch.ones(3).to(GPU), torch.tensor([1], device=GPU), x.copy_(torch.ones(3))
    torch.ones(3).to(GPU, non_blocking=True), torch.ones(()).item()
    assert waits.found == ["item", "aten._to_copy", "tensor", "aten.copy_"]


def test_the_loss_is_read_between_the_backward_pass_and_the_update(monkeypatch):
    torch.manual_seed(0)
    network = SparseMask(connectivity.fcn(), depth=4, num_classes=5)
    before = [p.detach().clone() for p in network.parameters()]
    optimizer = make_optimizer(network, 0.1, 10, 1, 0.9, 4e-5)
    reads = []

    def reading(tensor):
        assert all(p.grad is None for p in network.parameters())

        def read():
            assert all(p.grad is not None for p in network.parameters())
            reads.append([torch.equal(p, old) for p, old in zip(network.parameters(), before, strict=True)])
            return tensor
        return read
    monkeypatch.setattr(engine, "start_reading", reading)
    train_step(network, *random_batch(), train_losses, optimizer, Precision("float32", torch.device("cpu")))
    assert len(reads) == 1 and all(reads[0])
    assert not torch.equal(network.fc_conv.weight, before[-2])


def test_a_reading_waits_for_its_own_copy_alone(monkeypatch):
    order = []
    event = types.SimpleNamespace(record=lambda: order.append("record"), synchronize=lambda: order.append("wait"))
    monkeypatch.setattr(torch.cuda, "Event", lambda blocking: event)

    def to(device, non_blocking):
        order.append(f"copy to {device}, {non_blocking=}")
        return torch.ones(2)
    read = start_reading(types.SimpleNamespace(is_cuda=True, to=to))
    assert order == ["copy to cpu, non_blocking=True", "record"]
    assert read().tolist() == [1, 1] and order[2:] == ["wait"]
    assert start_reading(torch.ones(3))().tolist() == [1, 1, 1]


def test_batches_of_pinned_images_are_pinned(monkeypatch):
    pinned, empty = [], torch.empty
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: True)

    def record(*arguments, pin_memory=False, **given):
        pinned.append(pin_memory)
        return empty(*arguments, **given)
    monkeypatch.setattr(torch, "empty", record)
    joined, = join_equal(Batches(2), 4)
    assert pinned == [True] * 3 and joined.image.shape == (4, 40, 48, 3) and joined.inside[1].tolist() == [4, 6, 40, 40]


def test_convolutions_are_tuned_in_training_alone(monkeypatch):
    flags = []
    trainer = make_trainer("train", Batches(1), monkeypatch)

    def step(*_):
        flags.append(torch.backends.cudnn.benchmark)
        return None, torch.zeros(2, 40, 48, dtype=torch.int64, device=GPU)
    monkeypatch.setattr(engine, "train_step", step)
    trainer.run_epoch(lambda: False)
    assert flags == [True] and not torch.backends.cudnn.benchmark
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    with tuned_convolutions():
        assert not torch.backends.cudnn.benchmark


class TF32(TorchDispatchMode):
    """Matrix products of float32 with operands of 10 bits, as tensor cores have them."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (aten.mm, aten.addmm, aten.mv, aten.bmm):
            args = [rounded(x) if isinstance(x, torch.Tensor) and x.dtype == torch.float32 else x for x in args]
        return func(*args, **kwargs or {})


def rounded(x):
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2 ** 11).round() / 2 ** 11, exponent)


@pytest.mark.parametrize("spread", [0.0, 1e-4, 1e-2])
def test_variances_of_collinear_features_stay_positive_in_tf32(spread):
    """The plain product went to -4.5e-4 there, and its root was NaN."""
    torch.manual_seed(0)
    rows = (torch.rand(4000, 1) * torch.linspace(1, 6, 48) + spread * torch.randn(4000, 48)).requires_grad_()
    weight = 0.2 * torch.randn(192, 48)
    weight -= weight.mean(1, keepdim=True)  # some nearly orthogonal to the features' one direction
    direction = torch.linspace(1, 6, 48)
    weight -= (weight @ direction)[:, None] * direction / direction.square().sum()
    weight.requires_grad_()
    with TF32():
        mean, var = projected_moments(rows, weight)
        (var + EPS).rsqrt().sum().backward()
        _, covariance = Moments.apply(rows)
        plain = ((weight @ covariance) * weight).sum(1)
    assert plain.min() < -EPS, "the case is harmless"
    assert var.min() >= 0 and var.dtype == mean.dtype == torch.float32
    assert torch.isfinite(rows.grad).all() and torch.isfinite(weight.grad).all()
    exact = (rows.double() @ weight.double().t()).var(0, correction=0)
    torch.testing.assert_close(var.double(), exact, rtol=0.01, atol=EPS)


def test_the_cross_entropy_is_reduced_by_a_sum_of_its_own():
    class Reductions(TorchDispatchMode):
        found = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket is aten.nll_loss_forward:
                self.found.append(args[3])
            return func(*args, **kwargs or {})
    logits, label = torch.randn(2, 5, 6, 7, requires_grad=True), torch.randint(0, 5, (2, 6, 7))
    label[0, :2] = 255
    with Reductions():
        loss = pixel_cross_entropy(logits, label)
    assert Reductions.found == [0]  # "none"
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, label, ignore_index=255))


def test_the_benchmark_sets_what_the_commands_set_on_a_gpu(monkeypatch):
    def refuse(gpu):
        raise InputError(f"selected {gpu}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(bench, "select_device", refuse)
    assert call("benchmarks/bench", "--device", "cuda") == (2, "selected 0")
