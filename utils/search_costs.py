"""The costs of a search's connections, from the options to the loss, and in words."""
from collections.abc import Sequence

from models import FullyDenseNetwork
from models.budget import CostLoss
from models.costs import connection_costs, cost_text
from models.pruning import DEFAULT_THRESHOLD, prune
from utils.run import TrainingState


def make_cost_loss(network: FullyDenseNetwork, kind: str, size: Sequence[int], budget: float | None) -> CostLoss:
    """The sparse loss with the costs of this kind, for images of `size` (H, W), on the network's device."""
    costs = connection_costs(network, kind, size)
    return CostLoss([c[:l + 1] for l, c in enumerate(costs)], budget).to(next(network.parameters()).device)


def describe_cost(state: TrainingState, kind: str) -> str:
    """What the decoder costs after a search at the default threshold, beside its budget."""
    found, budget = state.cost_loss.pruned_cost(prune(state.network.final_strengths())), state.cost_loss.budget
    line = f"at the threshold {DEFAULT_THRESHOLD:g} the connections cost {cost_text(found, kind)}"
    return line if budget is None else f"{line}, {100 * found / budget:.0f} % of the budget"
