"""Fixtures of the MT-Bench tests: data, a tiny random chat model, an endpoint on loopback."""

import pytest
from support import tiny
from support.mt_bench import tiny_model, write_data

pytest.importorskip("fastchat", reason="needs the extra mt-bench")

from support.server import Server


@pytest.fixture
def data_dir(tmp_path):
    return write_data(tmp_path / "data")


@pytest.fixture
def server():
    endpoint = Server()
    yield endpoint
    endpoint.close()


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Two threads that wait for each other on a busy machine take minutes for a model of this size."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    """The client's first pause is half a second; a server's Retry-After stays what it is."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)


@pytest.fixture(scope="session")
def tokenizer():
    return tiny.byte_level_tokenizer()


@pytest.fixture(scope="session")
def model(tokenizer):
    return tiny_model(tokenizer)
