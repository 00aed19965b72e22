"""Connection strengths p in [0, 1], learned by gradient descent: spec section 4. Two parameterizations."""
import torch
from torch import nn

from utils.errors import InputError


class SigmoidStrengths(nn.Module):
    """p = sigmoid(beta * a), one logit a per connection, a = 0 at the start (p = 0.5).

    With a fixed beta the logits stall far from 0 and 1, for the gradient carries p (1 - p). `anneal` raises beta over
    the search, which drives each p to the side it leans to.
    """
    parameter_name = "_logit_"
    start = 0.0
    decays = False  # weight decay would pull every p back to 0.5
    warmup = 0.3  # share of the search before the strengths learn: features that are still random make a random choice
    noise_std = 0.2  # on beta * a: the same deviation of w = 2p at p = 0.5 as the released 0.1

    def __init__(self):
        super().__init__()
        self.register_buffer("beta", torch.ones(()))

    def forward(self, a, noise):
        """a (any shape) -> p of that shape; noise: whether to disturb it."""
        x = self.beta * a
        return torch.sigmoid(x + self.noise_std * torch.randn_like(x) if noise else x)

    def anneal(self, progress, beta_end):
        """progress: share of the strengths' learning that is done, 0 to 1. Beta grows exponentially, 1 to beta_end."""
        self.beta.fill_(beta_end ** progress)

    @torch.no_grad()
    def after_step(self, a):
        """Logits are free: nothing to do."""


class ClampStrengths(nn.Module):
    """The released code's: w, 1 at the start, clamped into [0, 2] after every optimizer step; p = w / 2."""
    parameter_name = "_weight_"
    start = 1.0
    decays = True
    warmup = 0.0
    noise_std = 0.1  # on w

    def forward(self, w, noise):
        """w (any shape) -> p of that shape; noise: whether to disturb it, clamped into [0, 2] again."""
        if noise:
            w = (w + self.noise_std * torch.randn_like(w)).clamp(0, 2)
        return w / 2

    def anneal(self, progress, beta_end):
        """No temperature here."""

    @torch.no_grad()
    def after_step(self, w):
        """Back into [0, 2], in place."""
        w.clamp_(0, 2)


STRENGTHS = {"sigmoid": SigmoidStrengths, "clamp": ClampStrengths}


def make_strengths(name):
    """"sigmoid" or "clamp" -> module. Raises InputError for another name."""
    if name not in STRENGTHS:
        raise InputError(f"unknown strengths {name!r}; known are {', '.join(STRENGTHS)}")
    return STRENGTHS[name]()
