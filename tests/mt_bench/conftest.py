"""Fixtures of the MT-Bench tests: data, a tiny random chat model, an endpoint on loopback."""

import pytest
from support import tiny
from support.mt_bench import PROMPTS, QUESTIONS, tiny_model, write_jsonl

pytest.importorskip("fastchat", reason="needs the extra mt-bench")

from support.server import Server


@pytest.fixture
def data_dir(tmp_path):
    folder = tmp_path / "data"
    write_jsonl(folder / "mt_bench" / "question.jsonl", QUESTIONS)
    write_jsonl(
        folder / "mt_bench" / "reference_answer" / "gpt-4.jsonl",
        [{"question_id": 2, "choices": [{"index": 0, "turns": ["42", "56"]}]}],
    )
    prompt = {"type": "single", "system_prompt": "You are a judge.", "output_format": "[[rating]]"}
    write_jsonl(
        folder / "judge_prompts.jsonl",
        [{**prompt, "name": name, "prompt_template": text} for name, text in PROMPTS.items()],
    )
    return folder


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
