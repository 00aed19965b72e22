"""Fixtures of all tests."""
import pytest
import torch

from helpers import tiny_data


@pytest.fixture(autouse=True)
def seed():
    """Every test draws the same random numbers, whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """`tiny_data` in a temporary folder."""
    return tiny_data(tmp_path_factory.mktemp("data"))
