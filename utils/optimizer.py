"""The optimizer of a run: SGD with three groups, and the strengths' own way of making steps."""
import torch
from torch import nn

RMS = "square_avg"  # of the gradient: its name in the optimizer's state, as in torch.optim.RMSprop


class NormalizedSGD(torch.optim.SGD):
    """SGD that divides the gradients of the groups marked "normalized" by their running root mean square.

    With a dampening equal to the momentum it is Adam without bias correction: each element moves by the learning rate
    at most, whatever the scale of its gradient. The strengths of deep stages have far smaller gradients than those of
    the finest one.
    """
    decay, eps = 0.99, 1e-12

    @torch.no_grad()
    def step(self, closure=None):
        """One step. A loss scaler's scale is taken out first, and a step that it skips changes nothing here."""
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        for group in self.param_groups:
            for parameter in group["params"] if group.get("normalized") else ():
                if parameter.grad is not None:
                    self.normalize(parameter, scale, found_inf)
        return super().step(closure)

    def normalize(self, parameter: nn.Parameter, scale: torch.Tensor | None, found_inf: torch.Tensor | None) -> None:
        """Divides the gradient of a parameter, in place. The first gradient that is not 0 starts the mean."""
        state = self.state[parameter]
        gradient = parameter.grad if scale is None else parameter.grad / scale
        before = state.setdefault(RMS, torch.zeros_like(parameter))
        square = gradient ** 2
        mean = torch.where(before == 0, square, before.lerp(square, 1 - self.decay))
        before.copy_(mean if found_inf is None else torch.where(found_inf.bool(), before, mean))
        gradient = gradient / (mean.sqrt() + self.eps)
        parameter.grad.copy_(gradient if scale is None else gradient * scale)


def make_optimizer(network: nn.Module, lr: float, decoder_multiplier: float, strength_multiplier: float,
                   momentum: float, weight_decay: float, normalized: bool = False) -> torch.optim.SGD:
    """SGD: the encoder at `lr`, the rest at `lr` times decoder_multiplier, the strengths at that times their own.

    normalized: whether the steps of the strengths do not depend on the scale of their gradients, see NormalizedSGD.
    """
    groups = [{"params": network.encoder_parameters(), "lr": lr, "name": "encoder"},
              {"params": network.decoder_parameters(), "lr": lr * decoder_multiplier, "name": "decoder"}]
    if network.strength_parameters():
        groups.append({"params": network.strength_parameters(), "lr": lr * decoder_multiplier * strength_multiplier,
                       "name": "strengths", "weight_decay": weight_decay if network.strengths.decays else 0.0})
        if normalized:
            groups[-1] |= {"normalized": True, "dampening": momentum}  # the mean of past gradients, not their sum
    for group in groups:
        group["initial_lr"] = group["lr"]
    kind = NormalizedSGD if normalized else torch.optim.SGD
    optimizer = kind(groups, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True)
    set_missing_momentum(optimizer)
    return optimizer


def set_missing_momentum(optimizer: torch.optim.SGD) -> None:
    """Gives every trained parameter that has no momentum one of zeros; the first step computes the same with it.

    Else the fused SGD allocates it without values in its first step, and they stay if the loss scaler skips that step.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if group["momentum"] and parameter.requires_grad:
                state = optimizer.state[parameter]
                if state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
