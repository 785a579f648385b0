"""A small MT-Bench of our own, in FastChat's layout; a tiny random chat model; an endpoint on loopback."""

import json

import pytest
import tiny

pytest.importorskip("fastchat", reason="needs the extra mt-bench")

from mt_bench.server import Server

QUESTIONS = [
    {"question_id": 1, "category": "writing", "turns": ["Write one line about the sea.", "Now make it rhyme."]},
    {"question_id": 2, "category": "math", "turns": ["What is 6 times 7?", "And if both are one more?"]},
    {"question_id": 3, "category": "stem", "turns": ["Why is ice lighter than water?", "Say it to a child"]},
    {"question_id": 4, "category": "extraction", "turns": ["Name the fruit: a red apple fell.", "Its colour?"]},
]
_RATE = 'Rate from 1 to 10 as "[[rating]]", for example: "Rating: [[5]]".\n\n'
_TWO = "User: {question_1}\nAssistant: {answer_1}\nUser: {question_2}\nAssistant: {answer_2}\n"
PROMPTS = {
    "single-v1": _RATE + "Question: {question}\nAnswer: {answer}",
    "single-math-v1": _RATE + "Question: {question}\nReference: {ref_answer_1}\nAnswer: {answer}",
    "single-v1-multi-turn": _RATE + _TWO,
    "single-math-v1-multi-turn": _RATE + "Reference: {ref_answer_1} then {ref_answer_2}\n" + _TWO,
}


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


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


def tiny_model(tokenizer, window=2048):
    return tiny.tiny_llama(
        len(tokenizer) + 8,  # rows to spare, as many checkpoints have
        max_position_embeddings=window,
        initializer_range=0.3,  # so that the next token depends on the text
    )


@pytest.fixture(scope="session")
def model(tokenizer):
    return tiny_model(tokenizer)
