import pytest
from support.server import Say

from ctxaware.errors import InputError
from ctxaware.mt_bench.calls import CallFailed
from ctxaware.mt_bench.endpoint import EndpointSettings, connect

MESSAGES = [{"role": "user", "content": "hello"}]


def chat(server, **kwargs):
    endpoint = connect(EndpointSettings(server.url, **{"max_retries": 2, "timeout_seconds": 5, **kwargs}))
    return endpoint.chat("judge", MESSAGES, temperature=0, max_tokens=7)


def test_a_reply_carries_the_text_the_model_and_the_count(server):
    reply = chat(server)
    assert (reply.text, reply.model, reply.n_tokens) == ("Good. Rating: [[7]]", "judge-2026-01-01", 5)
    assert server.bodies == [{"model": "judge", "messages": MESSAGES, "n": 1, "temperature": 0, "max_tokens": 7}]


def test_half_a_surrogate_pair_becomes_a_question_mark(server):
    server.reply = lambda _: Say(text="fine \ud83d [[5]]")
    assert chat(server).text == "fine ? [[5]]"


@pytest.mark.parametrize(
    "say",
    [Say(status=500), Say(status=503), Say(status=429), Say(cut=True), Say(wait_seconds=1.0)],
    ids=["500", "503", "429", "cut", "timeout"],
)
def test_a_call_that_fails_once_is_repeated(server, say):
    server.reply = lambda _: say if len(server.bodies) == 1 else Say()
    assert chat(server, timeout_seconds=0.5).text == "Good. Rating: [[7]]"
    assert len(server.bodies) == 2


@pytest.mark.parametrize(
    ("say", "kind", "n_requests"),
    [
        (Say(status=500), "http_500", 3),
        (Say(status=429), "http_429", 3),
        (Say(cut=True), "connection", 3),
        (Say(wait_seconds=1.0), "timeout", 3),
        (Say(status=400), "http_400", 1),
        (Say(text=None), "empty", 1),
        (Say(text=" \n"), "empty", 1),
        (Say(text=None, message={"refusal": "I can't"}), "refused", 1),
        (Say(finish_reason="content_filter"), "refused", 1),
        (Say(body=b'{"choices": []}'), "bad_response", 1),
        (Say(body=b'{"choices": null}'), "bad_response", 1),
        (Say(body=b"<html>gateway</html>"), "bad_response", 1),
        (Say(body=b"<html>gateway</html>", headers={"Content-Type": "text/html"}), "bad_response", 1),
        (Say(body=b"[]"), "bad_response", 1),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_gives_no_text_is_a_failure_after_a_bounded_number_of_tries(server, say, kind, n_requests):
    server.reply = lambda _: say
    with pytest.raises(CallFailed) as failed:
        chat(server, timeout_seconds=0.3)
    assert failed.value.kind == kind
    assert len(server.bodies) == n_requests


def test_retry_after_is_waited_for(server):
    server.reply = lambda _: Say(status=429, headers={"Retry-After": "1"}) if len(server.bodies) == 1 else Say()
    chat(server)
    assert 1.0 <= server.times[1] - server.times[0] < 3.0


@pytest.mark.parametrize("status", [401, 404])
def test_a_refused_key_or_an_unknown_model_ends_the_run(server, status):
    server.reply = lambda _: Say(status=status)
    with pytest.raises(InputError, match=str(status)):
        chat(server)
    assert len(server.bodies) == 1


def test_openai_s_key_does_not_go_to_another_endpoint(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-key")
    chat(server)
    assert "sk-very-secret-key" not in str(server.headers)


def test_another_default_url_in_the_environment_is_not_taken_unseen(monkeypatch, server):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-key")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    assert connect(EndpointSettings()).url == "https://api.openai.com/v1"


@pytest.mark.parametrize(
    ("url", "variable", "says"),
    [
        ("http://user:secret@localhost/v1", None, "must hold no key"),
        ("http://localhost/v1?key=secret", None, "must hold no key"),
        ("localhost:8000", None, "no http"),
        (None, None, "OPENAI_API_KEY is not set"),
        ("http://localhost/v1", "NO_SUCH_KEY", "NO_SUCH_KEY is not set"),
    ],
)
def test_bad_settings_are_told(url, variable, says, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match=says) as error:
        connect(EndpointSettings(url, variable))
    assert "secret" not in str(error.value)
