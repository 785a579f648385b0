"""Chat calls to an OpenAI-compatible endpoint: bounded retries, and a failure is never mistaken for a text."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ctxaware.errors import InputError

OPENAI_URL = "https://api.openai.com/v1"
MAX_FAILED_IN_A_ROW = 8  # at least: calls that the endpoint failed, each after its retries; then nobody is there


@dataclass(frozen=True)
class Reply:
    """One answer of a model, local or behind an endpoint.

    Attributes:
        text: what it said.
        finish_reason: `stop`, `length` (the limit on new tokens), `window` (the end of the context window).
        n_tokens: generated tokens; None where the endpoint doesn't tell.
        model: the name that the endpoint gave for itself.
    """

    text: str
    finish_reason: str | None = None
    n_tokens: int | None = None
    model: str | None = None


class CallFailed(Exception):
    """No usable text came of a call.

    Attributes:
        kind: one word for tables, as `timeout` or `http_429`.
        text: what came instead of a usable text, if anything.
        is_endpoint: the endpoint failed, not this one prompt.
    """

    def __init__(self, kind: str, message: str, text: str | None = None, is_endpoint: bool = False):
        super().__init__(message)
        self.kind, self.text, self.is_endpoint = kind, text, is_endpoint


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible endpoint; `connect` makes one from what a user passed."""

    base_url: str
    _client: object = field(repr=False)
    _key: str = field(repr=False)

    def chat(
        self, model: str, messages: list[dict], temperature: float, max_tokens: int, seed: int | None = None
    ) -> Reply:
        """One chat completion. The client repeats 408, 409, 429 and 5xx, timeouts and cut connections, with
        growing pauses or the server's `Retry-After`.

        Raises:
            CallFailed: nothing usable came, after the retries.
            InputError: the endpoint refuses the key, or doesn't know the model: no call can succeed.
        """
        import openai

        extra = {} if seed is None else {"seed": seed}
        try:
            response = self._client.chat.completions.create(
                model=model, messages=messages, n=1, temperature=temperature, max_tokens=max_tokens, **extra
            )
        except (openai.AuthenticationError, openai.NotFoundError) as error:
            raise InputError(
                f"{self.base_url} answers {error.status_code} for model {model!r}: {self._clean(error)}; "
                f"check --api-key-env, the model's name and --base-url; what is done is kept, run again"
            ) from error
        except openai.APITimeoutError as error:
            raise CallFailed("timeout", f"no answer in time: {self._clean(error)}", is_endpoint=True) from error
        except openai.APIStatusError as error:
            raise CallFailed(f"http_{error.status_code}", self._clean(error), is_endpoint=True) from error
        except openai.APIConnectionError as error:
            cause = f"{self._clean(error)} {self._clean(error.__cause__)}"
            raise CallFailed("connection", cause, is_endpoint=True) from error
        except (openai.OpenAIError, ValueError) as error:  # ValueError: a body that is no JSON
            raise CallFailed("bad_response", self._clean(error), is_endpoint=True) from error
        return self._reply(response)

    def _reply(self, response) -> Reply:
        try:
            choice = response.choices[0]
            text, finish_reason, refusal = choice.message.content, choice.finish_reason, choice.message.refusal
            usage = response.usage.completion_tokens if response.usage else None
        except (AttributeError, IndexError, TypeError) as error:
            message = f"the answer is no chat completion: {self._clean(response)[:200]}"
            raise CallFailed("bad_response", message, is_endpoint=True) from error
        if refusal or finish_reason == "content_filter":
            raise CallFailed("refused", f"the model refused: {self._clean(refusal or finish_reason)}", text)
        if not isinstance(text, str) or not text.strip():
            raise CallFailed("empty", f"the content is {text!r}, finish_reason {finish_reason!r}", text)
        return Reply(self._clean(text), finish_reason, usage, response.model)

    def _clean(self, text) -> str:
        """`text` without the key: an endpoint may repeat it."""
        return str(text).replace(self._key, "[key]") if len(self._key) >= 8 else str(text)


def connect(
    base_url: str | None, api_key_env: str | None, max_retries: int = 5, timeout_seconds: float = 300
) -> Endpoint:
    """An endpoint, with its key from the environment.

    Args:
        base_url: for example `http://localhost:8000/v1`; None for OpenAI's.
        api_key_env: the environment variable with the key. None: `OPENAI_API_KEY` for OpenAI's own endpoint and no key
            for another, so that a key never goes where its owner did not send it.
        max_retries: repetitions of one call.
        timeout_seconds: of one attempt.

    Raises:
        InputError: the URL is none, or carries a secret; the variable is not set.
    """
    try:
        import openai
    except ImportError as error:
        raise InputError("an endpoint needs the openai client: pip install 'ctxaware[mt-bench]'") from error

    parts = urlsplit(base_url or OPENAI_URL)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(
            "--base-url is written to the manifest and must hold no key; pass the key by --api-key-env VAR"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"--base-url {base_url!r} is no http(s) URL; pass for example http://localhost:8000/v1")
    variable = api_key_env or (None if base_url else "OPENAI_API_KEY")
    key = os.environ.get(variable, "").strip() if variable else "none"
    if not key:
        raise InputError(f"the environment variable {variable} is not set; put the endpoint's key there")
    url = (base_url or OPENAI_URL).rstrip("/")
    client = openai.OpenAI(base_url=url, api_key=key, max_retries=max_retries, timeout=timeout_seconds)
    return Endpoint(url, client, key)


def run_all(tasks: Iterable, work: Callable, done: Callable, parallel: int = 1) -> str | None:
    """Run `work(task)` in `parallel` threads; `done(task, result, failure)` runs here, as each one ends.

    Args:
        tasks: what to do.
        work: returns a result or raises `CallFailed`.
        done: takes the task, its result or None, and its failure or None.
        parallel: calls at a time.

    Returns:
        Why it stopped before the end: so many calls in a row failed that nobody seems to be there. Else None.

    Raises:
        InputError: as `work` raised it; whatever else was on its way has been waited for and handed to `done`.
    """
    from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

    if parallel < 1:
        raise InputError(f"--parallel must be 1 or more, got {parallel}")
    remaining, fatal, stop, n_failed = iter(tasks), None, None, 0
    limit = max(MAX_FAILED_IN_A_ROW, 2 * parallel)
    executor = ThreadPoolExecutor(parallel)
    in_flight = {}
    try:
        while True:
            while not (fatal or stop) and len(in_flight) < parallel:
                try:
                    task = next(remaining)
                except StopIteration:
                    break
                in_flight[executor.submit(work, task)] = task
            if not in_flight:
                break
            for future in wait(in_flight, return_when=FIRST_COMPLETED).done:
                task = in_flight.pop(future)
                try:
                    result, failure = future.result(), None
                    n_failed = 0
                except CallFailed as error:
                    result, failure = None, error
                    n_failed = n_failed + 1 if error.is_endpoint else 0
                except InputError as error:
                    fatal = error
                    continue
                done(task, result, failure)
                if n_failed >= limit:
                    stop = f"{n_failed} calls in a row failed, the last with: {failure}"
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
    if fatal is not None:
        raise fatal
    return stop
