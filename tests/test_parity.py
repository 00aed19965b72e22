"""The figures that the released code computes: tests/parity.

Evaluation mode, the losses of the first step and the gradients of the strengths agree to 1e-4 on every machine. The
rest of a training step is not defined so far: the batch is tiny (2 images of 49x65, so 12 values a channel at stride
32) and the gradients are large, so that rounding grows a thousandfold and more from one step to the next, and differs
with the instruction set (AVX2, AVX-512). The released figures, in single precision, are themselves 7e-4 (logits), 2e-4
(norm of conv1's gradient, relative) and 1e-2 (losses of the second and the third step) from those that double precision
gives. So each comparison is made in both precisions, with these distances as tolerances; test_networks.py compares with
the plain reading of the method (benchmarks/plain.py) in double precision to 1e-6.
"""
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers import PARITY, filled, parity_batch
from models import FullyDenseNetwork, SparseMask
from models.losses import pixel_cross_entropy, resize_logits, sparse_loss, sparsity_target, total_sparse_loss
from models.pruning import prune

STEPS = 3
TRAINING_LOGITS = {"atol": 1e-3}
CONV1_GRADIENT = {"rtol": 5e-3}
LOSSES = ({}, {"rtol": 0, "atol": 5e-2}, {"rtol": 0, "atol": 1e-1})  # of each step
WEIGHTS_AFTER_ALL_STEPS = {"atol": 5e-3}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def close(ours, figure, rtol=1e-4, atol=1e-4):
    ours = ours.detach().numpy() if isinstance(ours, torch.Tensor) else ours
    np.testing.assert_allclose(ours, figure, rtol=rtol, atol=atol)


def released_optimizer(network):
    encoder = [p for name, p in network.named_parameters() if name.startswith("backbone.")]
    rest = [p for name, p in network.named_parameters() if not name.startswith("backbone.")]
    return torch.optim.SGD([{"params": encoder, "lr": 0.005}, {"params": rest, "lr": 0.05}],
                           lr=0.005, momentum=0.9, weight_decay=4e-5)


def task_loss(logits, label):
    return pixel_cross_entropy(resize_logits(logits, label), label)


def gradient_norm(network, name):
    return float(network.get_parameter(name).grad.norm())


@pytest.fixture
def search():
    figures = np.load(PARITY / "search.npz", allow_pickle=False)
    network = FullyDenseNetwork(strengths="clamp", noise=False)
    network.load_state_dict(filled(network.state_dict()))
    return network, figures, *parity_batch(figures)


@pytest.fixture
def pruned():
    figures = np.load(PARITY / "pruned.npz", allow_pickle=False)
    network = SparseMask(figures["mask"])
    network.load_state_dict(filled(network.state_dict()))
    return network, figures, *parity_batch(figures)


@DTYPES
def test_search_forward_backward_and_three_steps(search, dtype):
    network, figures, image, label = search
    image, optimizer = image.to(dtype), released_optimizer(network.to(dtype).train())
    for step in range(STEPS):
        strengths = network.draw_strengths()
        logits = network(image, strengths)
        task, sparse = task_loss(logits, label), total_sparse_loss(strengths)
        optimizer.zero_grad()
        (task + 0.01 * sparse).backward()
        if step == 0:
            close(logits, figures["logits"], **TRAINING_LOGITS)
            close(task, figures["loss_task"])
            close([sparse_loss(p, sparsity_target(p.numel())).item() for p in strengths], figures["sparse_per_stage"])
            for l, parameter in enumerate(network.strength_parameters()):
                close(parameter.grad, figures[f"grad_weight_{l}"])
            close(gradient_norm(network, "backbone.conv1.weight"), figures["grad_norm_conv1"], **CONV1_GRADIENT)
            close(gradient_norm(network, "fc_conv.weight"), figures["grad_norm_fc"])
            close(gradient_norm(network, "decoders.Decoders_8.down_convs.0.0.weight"), figures["grad_conv_last"])
        close([(task + 0.01 * sparse).item(), task.item(), sparse.item()], figures["losses"][step],
              **LOSSES[step])
        optimizer.step()
        network.clamp_strengths()
    for l, parameter in enumerate(network.strength_parameters()):
        close(parameter, figures[f"weight_after_{l}"], **WEIGHTS_AFTER_ALL_STEPS)


def test_search_evaluation_mode(search):
    network, figures, image, _ = search
    with torch.no_grad():
        close(network.eval()(image), figures["logits_eval"])
        for i, tap in enumerate(reversed(network.backbone(image))):
            if i == 0:
                tap = F.relu6(tap)  # the released code's in-place ReLU6 had changed the stem's tap when it was read
            close(tap.mean((0, 2, 3)), figures[f"backbone_mean_{i}"])


@DTYPES
def test_pruned(pruned, dtype):
    network, figures, image, label = pruned
    assert sum(p.numel() for p in network.parameters()) == figures["params"]
    image, network = image.to(dtype), network.to(dtype)
    with torch.no_grad():
        close(network.eval()(image), figures["logits_eval"])
    optimizer = released_optimizer(network.train())
    for step in range(STEPS):
        logits = network(image)
        loss = task_loss(logits, label)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            close(logits, figures["logits"], **TRAINING_LOGITS)
            close(gradient_norm(network, "backbone.conv1.weight"), figures["grad_norm_conv1"], **CONV1_GRADIENT)
            close(gradient_norm(network, "fc_conv.weight"), figures["grad_norm_fc"])
        close(loss.item(), figures["losses"][step], **LOSSES[step])
        optimizer.step()


def test_all_sixty_pruning_cases():
    cases = np.load(PARITY / "prune.npz", allow_pickle=False)
    for weights, mask in zip(cases["weights"], cases["masks"], strict=True):
        strengths = [weights[l, :l + 1] / 2 for l in range(9)]
        assert (prune(strengths, 1e-3) == mask).all()


def test_parameter_counts():
    def count(network):
        return sum(p.numel() for p in network.parameters())
    supernet = FullyDenseNetwork(strengths="clamp")
    assert count(supernet) == 4_170_863
    assert count(supernet.backbone) == 2_224_960
    everything = SparseMask(np.stack([np.tri(9, dtype=bool)] * 2, axis=-1))
    assert count(everything) - count(everything.backbone) == 1_934_293
