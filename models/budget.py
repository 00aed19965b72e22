"""A search that knows what its connections cost, and one that ends at a given cost: see docs/method.md."""
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from models.costs import cost_text
from models.losses import sparse_loss, sparsity_target
from models.pruning import DEFAULT_THRESHOLD, total_cost
from utils.errors import InputError

GAIN = 400.0  # of the weight, over all steps in which the strengths learn, for a cost of e times the budget
DAMPING = 40.0  # of the weight, at once, for such a cost
LEAST = 1e-6  # of the expected cost over the budget, and of the largest strength of a stage


class CostLoss:
    """The sparse loss in which a connection counts as much as it costs: strengths -> scalar tensor.

    In each stage the mean strength is that weighted by `costs`, one array (l+1, 2) per stage. With equal costs it is
    `losses.total_sparse_loss`. budget: the cost, in the same unit, that the pruned decoder shall have; None for none.
    Then the expected cost over the budget, times `weight`, is added, and `adapt` changes the weight. `anneal` is called
    before each step. Nothing here waits for a GPU. Raises InputError for a budget that no decoder has.
    """

    def __init__(self, costs: Sequence[np.ndarray], budget: float | None = None):
        cheapest, most = float(costs[-1].min()), sum(float(c.sum()) for c in costs)
        if budget is not None and not cheapest <= budget <= most:
            raise InputError(f"the budget is {cost_text(budget)}; the cheapest connection of the finest stage costs "
                             f"{cost_text(cheapest)}, and all connections {cost_text(most)}: give a number "
                             f"between them", about="budget")
        self.costs, self.budget = [torch.as_tensor(c, dtype=torch.float64) for c in costs], budget
        self.weight, self.integral = (torch.zeros((), dtype=torch.float64) for _ in range(2))
        self.delta = torch.ones((), dtype=torch.float64)  # of `kept`

    def to(self, device: torch.device) -> "CostLoss":
        """Moves its tensors. Returns itself."""
        self.costs = [c.to(device) for c in self.costs]
        self.weight, self.integral = self.weight.to(device), self.integral.to(device)
        self.delta = self.delta.to(device)
        return self

    def anneal(self, progress: float) -> None:
        """Called before each step: sets the delta of `kept`. progress: as in `Strengths.anneal`."""
        self.delta.fill_(DEFAULT_THRESHOLD ** progress)  # in place: CUDA graphs read it there

    def __call__(self, strengths: Sequence[torch.Tensor]) -> torch.Tensor:
        """The loss of strengths, one tensor p (l+1, 2) per stage."""
        loss = sum(sparse_loss(p, sparsity_target(p.numel()), (c / c.sum()).to(p.dtype))
                   for p, c in zip(strengths, self.costs, strict=True))
        if self.budget is None:
            return loss
        return loss + (self.weight * self.expected_cost(strengths) / self.budget).to(loss.dtype)

    def kept(self, p: torch.Tensor) -> torch.Tensor:
        """How far each connection of a stage counts as kept: strengths (l+1, 2) -> float64 (l+1, 2) in [0, 1].

        r / (delta + (1 - delta) r), where r is the strength over the largest of the stage. A BN follows the sum of a
        stage, so the scale of its strengths does not change the result and must not change the cost. delta falls from
        1, where this is r, to the threshold of pruning, where it is 0.5 for r at the threshold and near 1 far above.
        """
        r = p.double() / p.double().amax().clamp(min=LEAST)
        return r / (self.delta + (1 - self.delta) * r)

    def expected_cost(self, strengths: Sequence[torch.Tensor]) -> torch.Tensor:
        """The expected cost of the decoder if each connection were kept with the probability `kept`: scalar tensor.

        A stage that nothing reads costs nothing. The finest one is used; another is used with the probability that one
        of its readers is used and reads it, taken as independent. With strengths of 0 and 1 it is the cost of the
        connections that the finest stage depends on.
        """
        unused = [torch.ones_like(self.weight) for _ in strengths]
        unused[-1] = total = torch.zeros_like(self.weight)
        for l in reversed(range(len(strengths))):
            q, used = self.kept(strengths[l]), 1 - unused[l]
            total = total + used * (q * self.costs[l]).sum()
            for source in range(1, l + 1):  # decoder-side source j is stage j - 1
                unused[source - 1] = unused[source - 1] * (1 - used * q[source, 1])
        return total

    @torch.no_grad()
    def adapt(self, strengths: Sequence[torch.Tensor], steps: float) -> None:
        """After a step: moves the weight towards the budget. steps: in which the strengths learn, in all.

        The deviation is the logarithm of the cost over the budget. Its integral holds the cost at the budget, and the
        deviation itself damps it: a PI controller.
        """
        if self.budget is not None:
            deviation = (self.expected_cost(strengths) / self.budget).clamp(min=LEAST).log()
            self.integral += GAIN / steps * deviation
            self.weight.copy_(self.integral + DAMPING * deviation)  # in place: CUDA graphs read it there

    def pruned_cost(self, connectivity: np.ndarray) -> float:
        """The cost of a connectivity, bool (L, L, 2)."""
        return total_cost(connectivity, [c.cpu().numpy() for c in self.costs])

    def state_dict(self) -> dict:
        """What a resumed search needs: the weight, and the costs, since latencies are measured once."""
        return {"integral": self.integral, "weight": self.weight, "costs": self.costs}

    def load_state_dict(self, state: Mapping) -> None:
        """Continues where `state_dict` was called. Raises InputError for a state of another network."""
        device = self.weight.device
        numbers = [state["integral"], state["weight"]]
        if [c.shape for c in state["costs"]] != [c.shape for c in self.costs] or any(n.ndim for n in numbers):
            raise InputError("the costs of the connections are those of another network")
        self.costs = [c.double() for c in state["costs"]]
        self.integral, self.weight = (number.double() for number in numbers)
        self.to(device)
