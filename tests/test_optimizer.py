"""NormalizedSGD: steps of the strengths that do not depend on the scale of their gradients."""
import pytest
import torch

from helpers import TINY, call, folders
from models import FullyDenseNetwork
from utils.checkpoint import read_checkpoint
from utils.optimizer import RMS, NormalizedSGD, make_optimizer


def run(scale, steps=20, **options):
    """The path of two parameters whose gradients are random, times `scale`; the second group is plain SGD."""
    generator = torch.Generator().manual_seed(0)
    normalized, plain = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    groups = [{"params": [normalized], "normalized": True, "dampening": 0.9}, {"params": [plain]}]
    optimizer = NormalizedSGD(groups, lr=0.1, momentum=0.9, **options)
    for _ in range(steps):
        gradient = torch.randn(3, generator=generator)
        normalized.grad, plain.grad = scale * gradient, scale * gradient
        optimizer.step()
    return normalized.detach(), plain.detach(), optimizer


def test_only_the_normalized_group_ignores_the_scale():
    (one, plain, _), (other, larger, _) = run(1.0), run(1000.0)
    assert torch.allclose(one, other, rtol=1e-4) and one.abs().max() > 0
    assert torch.allclose(1000 * plain, larger, rtol=1e-4)


def test_a_step_is_at_most_the_learning_rate_while_the_sign_stays():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = NormalizedSGD([{"params": [parameter], "normalized": True, "dampening": 0.9}], lr=0.1, momentum=0.9)
    before = 0.0
    for _ in range(100):
        parameter.grad = torch.full((1,), 3e-6)
        optimizer.step()
        assert before - 0.1001 <= parameter.item() < before
        before = parameter.item()
    assert parameter.item() == pytest.approx(-0.1 * 100, rel=0.1)


def test_without_a_gradient_nothing_moves_and_nothing_is_infinite():
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = NormalizedSGD([{"params": [parameter], "normalized": True}], lr=0.1, momentum=0.9)
    parameter.grad = torch.tensor([0.0, 1.0])
    optimizer.step()
    assert parameter[0] == 0 and torch.isfinite(parameter).all() and parameter[1] < 0


def test_a_loss_scale_is_taken_out_and_a_skipped_step_changes_nothing():
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = NormalizedSGD([{"params": [parameter], "normalized": True}], lr=0.1, momentum=0.9, fused=True)
    plain = torch.nn.Parameter(torch.zeros(2))
    reference = NormalizedSGD([{"params": [plain], "normalized": True}], lr=0.1, momentum=0.9)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1024.0), torch.tensor(0.0)
    for gradient in (torch.tensor([0.5, -2.0]), torch.tensor([1.0, 3.0])):
        parameter.grad, plain.grad = 1024 * gradient, gradient.clone()
        optimizer.step()
        reference.step()
        assert torch.allclose(parameter, plain)
    before, mean = parameter.detach().clone(), optimizer.state[parameter][RMS].clone()
    optimizer.found_inf = torch.tensor(1.0)
    parameter.grad = torch.tensor([float("inf"), 1.0])
    optimizer.step()
    assert (parameter == before).all() and (optimizer.state[parameter][RMS] == mean).all()


def test_only_the_strengths_of_a_search_are_normalized():
    network = FullyDenseNetwork(depth=4, num_classes=3)
    groups = make_optimizer(network, 0.1, 10, 2, 0.9, 0, normalized=True).param_groups
    assert [group.get("normalized", False) for group in groups] == [False, False, True]
    assert type(make_optimizer(network, 0.1, 10, 2, 0.9, 0)) is torch.optim.SGD


def test_a_resumed_search_is_the_uninterrupted_one(data, tmp_path):
    command = ["train_sparse_mask.py", "--search", *TINY, *folders(data), "--max_epoch", 3, "--keep_all",
               "--strength_optimizer", "adam", "--exp_path", tmp_path, "--run_name", "run"]
    assert call(*command).code == 0
    whole = read_checkpoint(tmp_path / "run" / "checkpoint_9.pth.tar").state
    for iteration in (6, 9):
        (tmp_path / "run" / f"checkpoint_{iteration}.pth.tar").unlink()
    assert call(*command).code == 0
    again = read_checkpoint(tmp_path / "run" / "checkpoint_9.pth.tar").state
    assert all((value == whole[name]).all() for name, value in again.items())
    outcome = call(*command, "--strength_optimizer", "sgd")
    assert outcome.code == 2 and "keeps this setting" in outcome.text, outcome.text
