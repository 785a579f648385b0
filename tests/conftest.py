"""What all tests share: no network, one thread, tiny tokenizers and models."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

from tests.tiny import CHATML, make_tokenizer


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)  # tiny matrices: threads only wait for one another


@pytest.fixture
def chatml_tokenizer():
    """A byte-level tokenizer with a ChatML template."""
    return make_tokenizer(CHATML)
