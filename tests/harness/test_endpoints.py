"""The tasks against a real HTTP endpoint on loopback that serves a tiny model in OpenAI's form."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from support import tiny

from ctxaware.errors import InputError
from ctxaware.harness.paths import tasks_folder

SMALL = {"source": "builtin", "max_context_length": 700, "num_context_lengths": 2, "num_depths": 2}


class Endpoint:
    """`/v1/completions` and `/v1/chat/completions` over a tiny model; keeps every request; can die."""

    def __init__(self):
        self.tokenizer = tiny.byte_level_tokenizer()
        self.model = tiny.tiny_llama(len(self.tokenizer))
        self.requests, self.dies_after = [], None
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if endpoint.dies_after is not None and len(endpoint.requests) >= endpoint.dies_after:
                    self.connection.close()
                    return
                endpoint.requests.append(body)
                answer = json.dumps(endpoint.answer(self.path, body)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def answer(self, path, body):
        if path.endswith("/chat/completions"):
            text = self.generate(
                self.tokenizer.apply_chat_template(body["messages"], tokenize=False), body["max_tokens"]
            )
            return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        prompts = [prompts] if isinstance(prompts[0], int) else prompts
        texts = [self.generate(p, body["max_tokens"]) for p in prompts]
        return {"choices": [{"index": n, "text": text} for n, text in enumerate(texts)]}

    @torch.no_grad()
    def generate(self, prompt, n_tokens):
        ids = prompt if isinstance(prompt, list) else self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        out = self.model.generate(torch.tensor([ids]), max_new_tokens=n_tokens, do_sample=False, pad_token_id=2)
        return self.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)


@pytest.fixture
def endpoint():
    endpoint = Endpoint()
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.byte_level_tokenizer().save_pretrained(folder)
    return str(folder)


def evaluate(endpoint, model, task, tokenizer_folder, template=False, use_cache=None, settings=(), **model_args):
    path = "chat/completions" if model == "local-chat-completions" else "completions"
    arguments = {"model": "tiny", "base_url": f"{endpoint.url}/{path}", "tokenizer": tokenizer_folder}
    arguments |= {"tokenizer_backend": "huggingface", "max_retries": 1, **model_args}
    arguments = {key: value for key, value in arguments.items() if value is not None}
    manager = TaskManager(
        include_path=str(tasks_folder()),
        include_defaults=False,
        metadata={**arguments, **SMALL, **dict(settings)},
    )
    return simple_evaluate(
        model,
        model_args=arguments,
        tasks=[task],
        task_manager=manager,
        apply_chat_template=template,
        use_cache=use_cache,
        limit=4,
        log_samples=True,
        bootstrap_iters=0,
    )["samples"][task]


def prompts_of(samples):
    return sorted(sample["arguments"][0][0] for sample in samples)


@pytest.mark.parametrize(
    ("template", "tokenized"),
    [(False, False), (False, True), (True, True)],  # with a template and no tokens the harness sends messages
)
def test_completions_are_sent_the_very_prompts(endpoint, tokenizer_folder, template, tokenized):
    samples = evaluate(
        endpoint, "local-completions", "nih_ctx_prefix", tokenizer_folder, template, tokenized_requests=tokenized
    )
    sent = [r["prompt"] for r in endpoint.requests]
    if tokenized:
        sent = [endpoint.tokenizer.decode(p[0] if isinstance(p[0], list) else p) for p in sent]
    assert sorted(sent) == prompts_of(samples)
    assert all(p.endswith("The best thing to do in San Francisco is") for p in sent)
    assert all(p.startswith("<|im_start|>system\n<|im_end|>\n") is template for p in sent)
    assert {(r["max_tokens"], r["temperature"]) for r in endpoint.requests} == {(50, 0)}


def test_chat_completions_are_sent_an_empty_system_message_and_the_users(endpoint, tokenizer_folder):
    samples = evaluate(endpoint, "local-chat-completions", "squad_contain", tokenizer_folder, template=True)
    for request in endpoint.requests:
        system, user = request["messages"]
        assert system == {"role": "system", "content": ""}
        assert "\nAnswer the question according to the above passage: " in user["content"]
        assert ". " in request["stop"]
        assert request["max_tokens"] == 100
    assert len(endpoint.requests) == len(samples) == 4


def test_the_stop_rule_holds_where_the_server_does_not_stop(endpoint, tokenizer_folder, monkeypatch):
    monkeypatch.setattr(endpoint, "generate", lambda *_: "Nothing here. a disused rope works")
    samples = evaluate(endpoint, "local-chat-completions", "squad_contain", tokenizer_folder, template=True)
    assert any("rope works" in sample["target"] for sample in samples)
    assert {sample["contain"] for sample in samples} == {0.0}


def test_text_for_a_chat_endpoint_and_messages_for_a_text_endpoint_are_refused(endpoint, tokenizer_folder):
    with pytest.raises(InputError, match="set apply_chat_template"):
        evaluate(endpoint, "local-chat-completions", "squad_contain", tokenizer_folder)
    with pytest.raises(InputError, match="add tokenized_requests=True"):
        evaluate(endpoint, "local-completions", "squad_contain", tokenizer_folder, True, tokenized_requests=False)
    assert endpoint.requests == []


def test_a_chat_endpoint_can_not_be_sent_a_prefix(endpoint, tokenizer_folder):
    with pytest.raises(InputError, match=r"tokenized_requests=True"):
        evaluate(endpoint, "local-chat-completions", "nih_ctx_prefix", tokenizer_folder, template=True)


@pytest.mark.parametrize("model", ["local-completions", "local-chat-completions"])
def test_the_back_ends_own_silent_truncation_is_caught_before_anything_is_sent(endpoint, tokenizer_folder, model):
    chat = model == "local-chat-completions"
    with pytest.raises(InputError, match=r"past the model's window of 2047.*pass the server's max_length"):
        evaluate(endpoint, model, "nih_ctx", tokenizer_folder, chat, settings={"max_context_length": 4000})
    settings = {"max_context_length": 2048, "reserve": 30}
    with pytest.raises(InputError, match="do not fit the model's window of 2047"):
        evaluate(endpoint, model, "nih_ctx", tokenizer_folder, chat, settings=settings)
    with pytest.raises(InputError, match="do not fit the model's window of 299"):
        evaluate(endpoint, model, "squad_contain", tokenizer_folder, chat, max_length=300)
    assert endpoint.requests == []


def test_without_a_tokenizer_reading_prompts_are_bounded_by_their_bytes(endpoint):
    arguments = {"tokenizer_backend": None, "tokenized_requests": False}
    with pytest.raises(InputError, match=r"bytes \(pass tokenizer=… to count tokens\)"):
        evaluate(endpoint, "local-chat-completions", "squad_contain", None, True, max_length=900, **arguments)
    assert evaluate(endpoint, "local-chat-completions", "squad_contain", None, True, max_length=8192, **arguments)
    with pytest.raises(InputError, match="add tokenizer=NAME_OR_FOLDER"):
        evaluate(endpoint, "local-chat-completions", "nih_ctx", None, True, **arguments)


def test_a_server_that_dies_leaves_nothing_to_repeat(endpoint, tokenizer_folder, tmp_path):
    cache = str(tmp_path / "cache")
    endpoint.dies_after = 3
    with pytest.raises(OSError, match=r"(?i)connection"):
        evaluate(endpoint, "local-completions", "nih_ctx", tokenizer_folder, use_cache=cache)
    endpoint.dies_after = None
    samples = evaluate(endpoint, "local-completions", "nih_ctx", tokenizer_folder, use_cache=cache)
    sent = [endpoint.tokenizer.decode(r["prompt"][0]) for r in endpoint.requests]
    assert sorted(sent) == prompts_of(samples)  # each prompt once, over both runs


def test_batches_of_mixed_length_score_as_one_by_one(model_folder):
    def responses(batch_size):
        metadata = {**SMALL, "num_context_lengths": 3, "pretrained": str(model_folder)}
        manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False, metadata=metadata)
        results = simple_evaluate(
            "hf",
            model_args={"pretrained": str(model_folder)},
            tasks=["nih_ctx", "squad_contain"],
            task_manager=manager,
            apply_chat_template=True,
            batch_size=batch_size,
            device="cpu",
            limit=12,
            log_samples=True,
            bootstrap_iters=0,
        )
        return [sample["resps"] for task in ("nih_ctx", "squad_contain") for sample in results["samples"][task]]

    assert responses(1) == responses(8)
