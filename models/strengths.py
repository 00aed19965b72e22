"""Connection strengths p in [0, 1], learned by gradient descent (paper section 3.3). Two parameterizations.

A third one is a subclass of Strengths, registered in STRENGTHS or named as `package.module:Class`.
"""
import torch
from torch import nn

from models import components


class Strengths(nn.Module):
    """How a learned parameter (one number per connection) becomes a strength p in [0, 1].

    One instance serves a whole network; the parameters belong to the stages, under the name `parameter_name`.
    """
    parameter_name = "_logit_"  # in the state dict: decoders.Decoders_L.<parameter_name>, (l+1, 2)
    start = 0.0  # value of every parameter at the start of a search
    decays = False  # whether weight decay acts on the parameters
    warmup = 0.0  # share of the search before the strengths learn

    def forward(self, a: torch.Tensor, noise: bool) -> torch.Tensor:
        """Parameters (any shape) -> p of that shape; noise: whether to disturb it."""
        raise NotImplementedError

    def anneal(self, progress: float, beta_end: float) -> None:
        """Called before each step. progress: share of the strengths' learning that is done, 0 to 1."""

    def after_step(self, a: torch.Tensor) -> None:
        """Called after each optimizer step with each parameter, to be changed in place, without gradient."""


class SigmoidStrengths(Strengths):
    """p = sigmoid(beta * a), one logit a per connection, a = 0 at the start (p = 0.5).

    With a fixed beta the logits stall far from 0 and 1, since the gradient carries p (1 - p). `anneal` raises beta over
    the search, which drives each p to the side that it leans to.
    """
    parameter_name = "_logit_"
    start = 0.0
    decays = False  # weight decay would pull every p back to 0.5
    warmup = 0.3  # while the features are still random, so is the choice among them
    noise_std = 0.2  # on beta * a: the same deviation of w = 2p at p = 0.5 as the released 0.1

    def __init__(self):
        super().__init__()
        self.register_buffer("beta", torch.ones(()))

    def forward(self, a: torch.Tensor, noise: bool) -> torch.Tensor:
        """Logits (any shape) -> p of that shape."""
        x = self.beta * a
        return torch.sigmoid(x + self.noise_std * torch.randn_like(x) if noise else x)

    def anneal(self, progress: float, beta_end: float) -> None:
        """Beta grows exponentially, from 1 to beta_end."""
        self.beta.fill_(beta_end ** progress)


class ClampStrengths(Strengths):
    """The released code's: w, 1 at the start, clamped into [0, 2] after every optimizer step; p = w / 2."""
    parameter_name = "_weight_"
    start = 1.0
    decays = True
    noise_std = 0.1  # on w

    def forward(self, w: torch.Tensor, noise: bool) -> torch.Tensor:
        """w (any shape) -> p of that shape; after the noise it is clamped into [0, 2] again."""
        if noise:
            w = (w + self.noise_std * torch.randn_like(w)).clamp(0, 2)
        return w / 2

    @torch.no_grad()
    def after_step(self, w: torch.Tensor) -> None:
        """Back into [0, 2], in place."""
        w.clamp_(0, 2)


STRENGTHS = {"sigmoid": SigmoidStrengths, "clamp": ClampStrengths}


def make_strengths(name: str) -> Strengths:
    """Name -> module. Raises InputError for an unknown one."""
    return components.make("strengths", name, STRENGTHS, expected=Strengths)
