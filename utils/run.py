"""The state of a run: all that changes while it proceeds, saved and restored as a whole."""
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from models.budget import CostLoss
from utils.errors import InputError, InputWarning, first_line
from utils.optimizer import RMS, set_missing_momentum
from utils.runtime import START_SCALE, Precision, random_state, set_random_state
from utils.tensor_files import check_tensor

RELEASED_ITERATIONS = 33_100  # 50 epochs of trainaug, batch 16


class NotFinite(Exception):
    """The loss or the weights are no longer finite; the message states where."""


@dataclass(frozen=True)
class Schedule:
    """"Poly" learning rate, (1 - i/N)^gamma of each group's `initial_lr`, and the strengths' annealing.

    The strengths stand still for the first `warmup` of the iterations; their poly schedule and annealing take the rest,
    and so does the annealing of a CostLoss. All of it follows from the iteration, so a resumed run needs only its
    number.
    """
    iterations: int
    gamma: float
    warmup: float = 0.0
    beta_end: float = 50.0

    def apply(self, iteration: int, optimizer: torch.optim.Optimizer, network: nn.Module,
              cost_loss: CostLoss | None = None) -> None:
        """Sets what iteration `iteration` (from 0; N after the last) runs with."""
        progress = iteration / self.iterations
        late = (progress - self.warmup) / (1 - self.warmup)
        for group in optimizer.param_groups:
            share = late if group.get("name") == "strengths" else progress
            group["lr"] = group["initial_lr"] * (1 - share) ** self.gamma if share >= 0 else 0.0
        if hasattr(network, "strengths"):
            network.strengths.anneal(max(late, 0.0), self.beta_end)
        if cost_loss is not None:
            cost_loss.anneal(max(late, 0.0))


class TrainingState:
    """Network, optimizer, schedule, and how far the run is."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, schedule: Schedule, precision: Precision,
                 cost_loss: CostLoss | None = None):
        self.network, self.optimizer, self.schedule, self.precision = network, optimizer, schedule, precision
        self.cost_loss = cost_loss  # of a search whose connections have costs
        self.iteration, self.best_m_iou = 0, -1.0  # `iteration`: the number of steps done, whatever their batch size
        self.shift = 0  # (iteration + shift) / iterations of an epoch: the epochs done, also after other batch sizes
        self.evaluated_at = None  # iteration
        # of this epoch's training images so far: int64 (classes, classes)
        self.train_confusion = torch.zeros(network.num_classes, network.num_classes, dtype=torch.int64,
                                           device=precision.device)

    @property
    def finished(self) -> bool:
        """Whether all iterations are done."""
        return self.iteration == self.schedule.iterations

    @property
    def all_skipped(self) -> bool:
        """Whether the loss scaler has skipped every step so far, so that nothing is learned yet."""
        return all_skipped(self.precision.scaler.state_dict(), self.iteration)

    def apply_schedule(self) -> None:
        """Sets the learning rates and the annealing of the next iteration."""
        self.schedule.apply(self.iteration, self.optimizer, self.network, self.cost_loss)

    def advance(self) -> None:
        """After a step: counts it, and moves the weight of the costs towards their budget."""
        self.iteration += 1
        learning = self.schedule.iterations * (1 - self.schedule.warmup)
        if self.cost_loss is not None and self.iteration > self.schedule.iterations - learning:
            self.cost_loss.adapt(self.network.clean_strengths(), learning)

    def check_finite(self) -> None:
        """Raises NotFinite, naming it, if a tensor of the network or of the optimizer is not finite."""
        tensors = self.network.state_dict()
        for name, parameter in self.network.named_parameters():
            momentum = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                tensors[f"the momentum of {name}"] = momentum
        for name, value in tensors.items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise NotFinite(f"{name} is no longer finite after iteration {self.iteration}")

    def state_dict(self) -> dict:
        """All that rebuilds the network and continues the run, as tensors and plain values."""
        return {"iter": self.iteration, "iterations": self.schedule.iterations, "shift": self.shift,
                "model": self.network.config(),
                "state_dict": self.network.state_dict(), "optimizer": self.optimizer.state_dict(),
                "scaler": self.precision.scaler.state_dict(), "random_state": random_state(self.precision.device),
                "best_m_iou": self.best_m_iou, "evaluated_at": self.evaluated_at,
                "train_confusion": self.train_confusion,
                **({"cost_loss": self.cost_loss.state_dict()} if self.cost_loss is not None else {})}

    def load_state_dict(self, content: Mapping, path: str) -> None:
        """Continues where `state_dict` was called; the network has its weights already. path: of the file, for errors.

        Raises InputError if the optimizer or another state does not belong to such a run.
        """
        try:
            self._load_optimizer(content["optimizer"], path, all_skipped(content["scaler"], content["iter"]))
            if content["scaler"] and self.precision.scaler.is_enabled():  # empty: another type, without a scaler
                self.precision.scaler.load_state_dict(content["scaler"])
            self.train_confusion.copy_(content["train_confusion"])
            if self.cost_loss is not None:
                self.cost_loss.load_state_dict(content["cost_loss"])
            set_random_state(content["random_state"], self.precision.device)
        except InputError:
            raise
        except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise InputError(f"{path} cannot be resumed: the state of its optimizer or of its random numbers is "
                             f"damaged, or of another run ({first_line(error)}); resume another checkpoint") from None
        self.iteration, self.best_m_iou = content["iter"], content["best_m_iou"]
        self.shift = content.get("shift", 0)  # older runs had none
        self.evaluated_at = content.get("evaluated_at", self.iteration)  # older runs did not store it

    def _load_optimizer(self, state: Mapping, path: str, never_stepped: bool) -> None:
        """Loads the optimizer's state. The fused SGD writes out of bounds where a momentum has another shape.

        Versions before `set_missing_momentum` stored momentum that was never set. It is recognized by values that are
        not finite, or by never_stepped, and begins at zero.
        """
        own = self.optimizer.state_dict()["param_groups"]  # rates and so on follow from the run's settings
        groups = [{**group, "params": saved["params"]} for group, saved in zip(own, state["param_groups"], strict=True)]
        self.optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
        unset = 0
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                buffer = self.optimizer.state[parameter].get("momentum_buffer")
                if buffer is not None:
                    if buffer.shape != parameter.shape:
                        raise ValueError(f"a momentum has the shape {tuple(buffer.shape)}")
                    if never_stepped and buffer.any() or not torch.isfinite(buffer).all():
                        buffer.zero_()
                        unset += 1
                    check_tensor("momentum", buffer, parameter, path)
                if RMS in self.optimizer.state[parameter]:
                    check_tensor(RMS, self.optimizer.state[parameter][RMS], parameter, path)
        set_missing_momentum(self.optimizer)
        if unset:
            warnings.warn(f"{path} contains {unset} tensors of momentum that were never set, as an older version left "
                          f"them after steps that the loss scaler skipped; they begin at zero", InputWarning,
                          stacklevel=2)


def all_skipped(scaler: Mapping, iterations: int) -> bool:
    """Whether the loss scaler, by its state, skipped all of the first `iterations` steps: each halves the scale."""
    return bool(scaler) and iterations > 0 and scaler["scale"] == START_SCALE * scaler["backoff_factor"] ** iterations
