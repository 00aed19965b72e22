"""--type float16: steps that the loss scaler skips leave no trace, and what older versions left is repaired."""
import pytest
import torch

from helpers import TINY, call, folders, only_run
from models import SparseMask, connectivity
from utils.optimizer import make_optimizer
from utils.run import NotFinite, Schedule, TrainingState
from utils.runtime import START_SCALE, Precision

EPOCHS = 5  # of 3 steps; from random weights the scaler skips 8 of a training and 11 of a search
FLOAT16 = ["--type", "float16", "--max_epoch", EPOCHS, "--eval_interval", EPOCHS, "--keep_all"]
KINDS = {"train": ["--mask_path", "fcn"], "search": ["--search"]}


def tensors(content):
    """Every tensor in a checkpoint's network and optimizer, by a name."""
    momentum = {f"momentum {i}": state["momentum_buffer"] for i, state in content["optimizer"]["state"].items()}
    return {**content["state_dict"], **momentum}


def differences(ours, others):
    """Names of the tensors that differ by more than the order of a sum, which the two optimizers do not share."""
    assert ours.keys() == others.keys()
    return [name for name in ours if not torch.allclose(ours[name], others[name], rtol=1e-4, atol=1e-6)]


def checkpoint(folder, iteration):
    return torch.load(folder / f"checkpoint_{iteration}.pth.tar", weights_only=True)


@pytest.fixture(scope="module", params=KINDS)
def runs(request, data, tmp_path_factory):
    """The folders of a run with the fused optimizer and, of a training, of the same run with an unfused one."""
    folders_of = []
    sgd = torch.optim.SGD
    for fused in (True, False) if request.param == "train" else (True,):
        out = tmp_path_factory.mktemp(request.param)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.optim, "SGD",
                          lambda groups, own=fused, **given: sgd(groups, **{**given, "fused": own}))
            outcome = call("train_sparse_mask.py", *KINDS[request.param], *TINY, *folders(data), *FLOAT16,
                           "--exp_path", out)
        assert outcome.code == 0, outcome.text
        folders_of.append(only_run(out))
    return folders_of


@pytest.mark.slow
def test_weights_move_and_equal_those_of_an_unfused_optimizer(runs):
    first, last = (checkpoint(runs[0], 3 * epoch) for epoch in (1, EPOCHS))
    assert first["scaler"]["scale"] == START_SCALE / 8, "the case has no skipped steps any more"
    assert last["scaler"]["scale"] > START_SCALE / 2 ** (3 * EPOCHS), "all steps are skipped"
    for name in ("fc_conv.weight", "backbone.conv1.weight"):
        assert not torch.equal(first["state_dict"][name], last["state_dict"][name])
    for epoch in range(1, EPOCHS + 1):
        ours, *plain = (checkpoint(folder, 3 * epoch) for folder in runs)
        for name, tensor in tensors(ours).items():
            assert torch.isfinite(tensor).all(), (epoch, name)
        assert all(not differences(tensors(ours), tensors(other)) and ours["scaler"] == other["scaler"]
                   for other in plain)


@pytest.mark.slow
def test_a_skipped_step_changes_nothing_that_learns(runs):
    content = checkpoint(runs[0], 3)
    momentum = [state["momentum_buffer"] for state in content["optimizer"]["state"].values()]
    assert momentum and not any(buffer.any() for buffer in momentum)
    later = checkpoint(runs[0], 6)  # skipped too
    learned = [name for name in content["state_dict"] if name.endswith((".weight", ".bias", "_weight_"))]
    assert learned and all(torch.equal(content["state_dict"][n], later["state_dict"][n]) for n in learned)


@pytest.mark.slow
@pytest.mark.parametrize("runs", ["train"], indirect=True)
def test_a_resume_after_skipped_steps_ends_as_the_whole_run(runs, tmp_path):
    """Even with what an older version left in the momentum that its first, skipped, step allocated."""
    content = checkpoint(runs[0], 3)
    state = content["optimizer"]["state"]
    state[0]["momentum_buffer"][0] = float("nan")
    state[3]["momentum_buffer"][0] = 1e20
    del state[1]
    torch.save(content, tmp_path / "checkpoint_3.pth.tar")
    outcome = call("train_sparse_mask.py", "--resume", tmp_path)
    assert outcome.code == 0 and outcome.text.count("never set") == 1, outcome.text
    assert "2 tensors of momentum" in outcome.text
    assert not differences(*(tensors(checkpoint(folder, 3 * EPOCHS)) for folder in (runs[0], tmp_path)))


def test_a_run_whose_every_step_was_skipped_says_so(data, tmp_path):
    outcome = call("train_sparse_mask.py", *KINDS["train"], *TINY, *folders(data), "--type", "float16", "--max_epoch",
                   1, "--exp_path", tmp_path)
    assert outcome.code == 0 and outcome.text.count("warning: the gradients overflowed in every step") == 1


def test_gradients_that_always_overflow_stop_the_run(data, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.engine.LEAST_SCALE", START_SCALE / 2)
    outcome = call("train_sparse_mask.py", *KINDS["train"], *TINY, *folders(data), "--type", "float16", "--max_epoch",
                   1, "--exp_path", tmp_path)
    assert outcome.code == 1 and "gradients overflow with every scale" in outcome.text
    assert "iteration 3" in outcome.text  # whose scale is that of two overflows: it is read with the loss


def network(momentum):
    torch.manual_seed(0)
    network = SparseMask(connectivity.fcn(), num_classes=3, depth=4)
    return network, make_optimizer(network, 0.1, 10, 1, momentum, 4e-5)


def test_zero_momentum_at_the_start_changes_no_digit():
    for momentum in (0.9, 0.0):
        states = []
        for _ in range(2):
            net, optimizer = network(momentum)
            if len(states):
                optimizer.state.clear()  # what PyTorch begins with
            else:
                assert len(optimizer.state) == (len(list(net.parameters())) if momentum else 0)
            for step in range(3):
                for i, parameter in enumerate(net.parameters()):
                    parameter.grad = torch.full_like(parameter, 0.1 * step - 0.01 * i)
                optimizer.step()
            states.append([p.detach().clone() for p in net.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_momentum_that_is_not_finite_is_not_saved():
    net, optimizer = network(0.9)
    state = TrainingState(net, optimizer, Schedule(10, 0.9), Precision("float32", torch.device("cpu")))
    state.check_finite()
    optimizer.state[net.fc_conv.weight]["momentum_buffer"][0] = float("nan")
    with pytest.raises(NotFinite, match="momentum of fc_conv.weight"):
        state.check_finite()
