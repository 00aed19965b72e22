"""--cuda_graphs. CUDA's graphs are stood in for by a recorder of operators, which repeats them in the same memory."""
import contextlib
import functools
import re

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from helpers import TINY, call, folders, only_run, random_batch
from models import FullyDenseNetwork, SparseMask, connectivity
from models.budget import CostLoss
from utils.checkpoint import read_checkpoint
from utils.engine import search_losses, train_losses, train_step
from utils.errors import InputWarning
from utils.optimizer import make_optimizer
from utils.run import Schedule, TrainingState
from utils.runtime import Precision
from utils.step_graphs import StepGraph, StepGraphs, why_no_graphs

CPU = torch.device("cpu")


class Recorder(TorchDispatchMode):
    """Repeats operators as a CUDA graph would: the same ones, on the same tensors, whatever Python would do now."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # aliases, since an operator in place may give one of these tensors another shape later
        given = tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs))
        result = func(*args, **kwargs)
        self.calls.append((func, *given, tree_map_only(torch.Tensor, torch.Tensor.detach, result)))
        return result

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, result in self.calls:
            for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    def pool(self):
        return None


@pytest.fixture
def recorded(monkeypatch):
    """Makes torch.cuda's graphs Recorders. The list gets the network, whose buffers a capture must not change."""
    networks = []

    @contextlib.contextmanager
    def graph(recorder, **_):
        before = [[buffer.clone() for buffer in network.buffers()] for network in networks]
        with recorder:
            yield
        for network, values in zip(networks, before, strict=True):
            for buffer, value in zip(network.buffers(), values, strict=True):
                buffer.data.copy_(value)  # without a new version, which autograd would refuse

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorder)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: torch.set_rng_state(state))
    return networks


def run_steps(networks, kind, graphs=None, budget=False, type_name="float32"):
    """Ten steps, two of them with a smaller batch. Returns the losses, and all tensors of network and optimizer."""
    torch.manual_seed(0)
    network = SparseMask(connectivity.published(), depth=4, num_classes=5) if kind == "train" else \
        FullyDenseNetwork(depth=4, num_classes=5, strengths=kind)
    networks[:] = [network]
    precision = Precision(type_name, CPU)
    precision.place(network).train()
    costs = [torch.rand(l + 1, 2).double().numpy() for l in range(network.num_stages)]
    cost_loss = CostLoss(costs, 3.0) if budget else None
    state = TrainingState(network, make_optimizer(network, 0.01, 10, 1, 0.9, 4e-5, normalized=budget),
                          Schedule(10, 0.9, 0.1), precision, cost_loss)
    losses = train_losses if kind == "train" else functools.partial(
        search_losses, sparse_weight=0.01, **({"regularizer": cost_loss} if budget else {}))
    found = []
    for step in range(10):
        state.apply_schedule()
        image, label = random_batch(seed=step, n=1 if step in (4, 6) else 2)
        result, prediction = train_step(network, image, label, losses, state.optimizer, precision, graphs=graphs)
        found += [result.total.clone(), prediction.clone()]
        state.advance()
    momentum = [entry["momentum_buffer"] for entry in state.optimizer.state.values()]
    return found + list(network.state_dict().values()) + momentum


@pytest.mark.parametrize("kind, budget", [("train", False), ("sigmoid", False), ("clamp", False), ("sigmoid", True)])
def test_steps_as_graphs_compute_what_steps_compute(recorded, kind, budget):
    plain = run_steps(recorded, kind, budget=budget)
    graphs = StepGraphs()
    replayed = run_steps(recorded, kind, graphs, budget)
    assert [shape[0] for shape in graphs.graphs] == [2], "the smaller batch came twice only"
    for one, other in zip(plain, replayed, strict=True):
        assert torch.equal(one, other)


def test_the_loss_scale_is_read_anew_by_each_replay(recorded):
    """In float16 the first steps overflow, each halves the scale, and the graph has to multiply by the new one."""
    plain, replayed = (run_steps(recorded, "train", graphs, type_name="float16") for graphs in (None, StepGraphs()))
    assert all(torch.equal(*pair) for pair in zip(plain, replayed, strict=True))


def test_a_step_that_changes_in_python_would_be_noticed(recorded, monkeypatch):
    """The stand-in repeats what was captured: a number that Python changes later stays what it was."""
    from models.strengths import SigmoidStrengths

    def anneal(self, progress, beta_end):
        self.beta = torch.tensor(beta_end ** progress)  # a new tensor, instead of the old one's new value
    monkeypatch.setattr(SigmoidStrengths, "anneal", anneal)
    plain, replayed = (run_steps(recorded, "sigmoid", graphs) for graphs in (None, StepGraphs()))
    assert not all(torch.equal(*pair) for pair in zip(plain, replayed, strict=True))


def test_a_shape_is_captured_when_it_comes_for_the_third_time():
    captured = []
    graphs = StepGraphs(lambda *arguments: captured.append(arguments) or len(captured))
    image, other = torch.zeros(2, 3, 5, 5), torch.zeros(1, 3, 5, 5)
    found = [graphs.find("compute", "optimizer", x, x[:, 0]) for x in (image, other, image, image, other, image, other)]
    assert found == [None, None, None, 1, None, 1, 2]
    assert [arguments[2].shape for arguments in captured] == [image.shape, other.shape]


@pytest.mark.parametrize("error, words", [
    (RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore"), "operation not permitted"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "the GPU's memory ran out")])
def test_what_cannot_be_captured_runs_without_graphs(error, words):
    def capture(*_):
        raise error
    graphs, image = StepGraphs(capture), torch.zeros(2, 3, 5, 5)
    assert [graphs.find(None, None, image, image) for _ in range(2)] == [None, None]
    with pytest.warns(InputWarning, match=f"cannot be captured as CUDA graphs .*{re.escape(words)}"):
        assert graphs.find(None, None, image, image) is None
    assert graphs.find(None, None, image, image) is None  # and no second warning: pytest would make it an error


def test_a_failed_capture_leaves_the_random_numbers_as_they_were(recorded):
    def compute(image, label):
        torch.randn(3)
        raise RuntimeError("no")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError):
        StepGraph(compute, optimizer, torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_who_can_use_graphs():
    cuda = torch.device("cuda")
    assert why_no_graphs(["conv1x1", "sparse"], cuda, 1) is None
    assert "CPU" in why_no_graphs(["conv1x1"], CPU, 1)
    assert "several processes" in why_no_graphs(["conv1x1"], cuda, 2)
    assert "mine.parts:Fusion may do in Python" in why_no_graphs(["conv1x1", "mine.parts:Fusion"], cuda, 1)


def test_on_a_cpu_the_option_is_said_to_have_no_effect(data, tmp_path):
    outcome = call("train_sparse_mask", "--mask_path", "fcn", *folders(data), *TINY, "--max_epoch", 1, "--exp_path",
                   tmp_path, "--cuda_graphs")
    assert outcome.code == 0 and "this run uses no CUDA graphs, since it runs on a CPU" in outcome.text
    assert read_checkpoint(str(only_run(tmp_path))).content["settings"]["cuda_graphs"] is True


def test_graphs_and_compilation_exclude_each_other(data, tmp_path):
    outcome = call("train_sparse_mask", "--mask_path", "fcn", *folders(data), *TINY, "--exp_path", tmp_path,
                   "--cuda_graphs", "--compile")
    assert outcome.code == 2 and "--cuda_graphs and --compile both replace" in outcome.text
    assert not any(tmp_path.iterdir())
