"""Fixtures that several test modules share."""

import logging
import os
import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background: tests of Ctrl-C would wait for ever
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that forgets itself fails at once
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import HealthCheck, settings
from support import chats, tiny

# the same examples on every machine, however slow it is; HYPOTHESIS_PROFILE=default draws others
settings.register_profile(
    "ctxaware", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ctxaware"))


@pytest.fixture(params=["byte_level", "sentencepiece_like"])
def tokenizer(request):
    """Each of the two ways in which today's tokenizers behave."""
    return getattr(tiny, f"{request.param}_tokenizer")()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A tiny random model with a ChatML template."""
    return tiny.save_model(tmp_path_factory.mktemp("model"), tiny.byte_level_tokenizer())


@pytest.fixture
def chatml_tokenizer():
    """A byte-level tokenizer with a plain ChatML template and the usual markers as special tokens."""
    return chats.make_tokenizer(chats.CHATML)


@pytest.fixture(autouse=True)
def _log_of_the_harness():
    """An evaluation in this process ends the way of the harness's log to `caplog`, for all tests after it."""
    logging.getLogger("lm_eval").propagate = True


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)  # for tiny matrices threads only wait for one another
