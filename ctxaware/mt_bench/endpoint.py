"""Chat calls to an OpenAI-compatible endpoint: bounded in time and size, and a failure is never mistaken for a text."""

import html
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from ctxaware.errors import InputError
from ctxaware.mt_bench.calls import CallFailed, Reply, within

if TYPE_CHECKING:
    import openai

OPENAI_URL = "https://api.openai.com/v1"
MAX_BODY = 4 << 20  # bytes; 2,048 tokens are some 10 KB
MIN_KEY = 4  # characters; a shorter one would be masked in every other word
_MAX_ERROR = 500  # characters kept of an error


@dataclass(frozen=True)
class EndpointSettings:
    """An OpenAI-compatible endpoint and how to call it.

    Attributes:
        base_url: for example `http://localhost:8000/v1`; None for OpenAI's.
        api_key_env: the environment variable with the key. None: `OPENAI_API_KEY` for OpenAI's own endpoint and no key
            for another, so that a key never goes where its owner did not send it.
        max_retries: repetitions of one call.
        timeout_seconds: without a byte, of one attempt.
        call_seconds: of one call as a whole, with its repetitions.
        parallel: calls at a time.
    """

    base_url: str | None = None
    api_key_env: str | None = None
    max_retries: int = 5
    timeout_seconds: float = 300
    call_seconds: float = 900
    parallel: int = 1

    def __post_init__(self) -> None:
        if self.parallel < 1:
            raise InputError(f"parallel must be 1 or more, got {self.parallel}")


@dataclass(frozen=True)
class Endpoint:
    """An endpoint that can be called; `connect` makes one from what a user passed.

    Attributes:
        url: as it may be shown and written, without the key.
    """

    url: str
    _client: "openai.OpenAI" = field(repr=False)
    _key_pattern: re.Pattern | None = field(repr=False)
    _call_seconds: float = field(repr=False)

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

        create = self._client.chat.completions.with_raw_response.create  # raw: its models have no bound on depth
        arguments: dict[str, Any] = {"model": model, "messages": messages, "n": 1, "temperature": temperature}
        arguments |= {"max_tokens": max_tokens} | ({} if seed is None else {"seed": seed})
        try:
            body = json.loads(within(self._call_seconds, lambda: create(**arguments).content))
        except (openai.AuthenticationError, openai.NotFoundError) as error:
            raise InputError(
                f"{self.url} answers {error.status_code} for model {model!r}: {self._error(error)}; "
                f"check the key, the model's name and the URL; what is done is kept, run again"
            ) from error
        except (openai.APITimeoutError, TimeoutError) as error:
            raise CallFailed("timeout", f"no answer in time: {self._error(error)}", is_endpoint=True) from error
        except openai.APIStatusError as error:
            raise CallFailed(f"http_{error.status_code}", self._error(error), is_endpoint=True) from error
        except openai.APIConnectionError as error:
            cause = f"{self._error(error)} {self._error(error.__cause__)}"
            raise CallFailed("connection", cause, is_endpoint=True) from error
        except (openai.OpenAIError, ValueError, RecursionError) as error:  # no JSON, nested deep, too large
            raise CallFailed("bad_response", self._error(error), is_endpoint=True) from error
        return self._reply(body)

    def _reply(self, body: Any) -> Reply:
        try:
            choice = body["choices"][0]
            message, finish_reason = choice["message"], self._masked(choice.get("finish_reason"))
            text, refusal = self._masked(message["content"]), message.get("refusal")
            n_tokens = (body.get("usage") or {}).get("completion_tokens")
            model = self._masked(body.get("model"))
        except (KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            shown = self._error(", ".join(body) if isinstance(body, dict) else type(body).__name__)
            message = f"the answer is no chat completion, it holds: {shown}"
            raise CallFailed("bad_response", message, is_endpoint=True) from error
        if refusal or finish_reason == "content_filter":
            reason = self._error(refusal or finish_reason)
            raise CallFailed("refused", f"the model refused: {reason}", text)
        if text is None or not text.strip() or not isinstance(message["content"], str):
            raise CallFailed("empty", self._error(f"the content is {text!r}, finish_reason {finish_reason!r}"), text)
        is_count = isinstance(n_tokens, int) and not isinstance(n_tokens, bool)
        return Reply(text, finish_reason, n_tokens if is_count else None, model)

    def _masked(self, value: Any) -> str | None:
        """A value as text without the key, which an endpoint may repeat anywhere; None stays None."""
        if value is None:
            return None
        text = str(value).encode(errors="replace").decode()  # JSON can spell half a surrogate pair, UTF-8 can't
        return self._key_pattern.sub("[key]", text) if self._key_pattern else text

    def _error(self, error: Any) -> str:
        return (self._masked(error) or "")[:_MAX_ERROR]  # masked first: half a key would be left at a cut


def connect(settings: EndpointSettings) -> Endpoint:
    """An endpoint, with its key from the environment.

    Raises:
        InputError: the URL is none, or carries a secret; the variable is not set, or holds what can't be a key.
    """
    try:
        import openai
    except ImportError as error:
        raise InputError("an endpoint needs the openai client: pip install 'ctxaware[mt-bench]'") from error

    url = (settings.base_url or OPENAI_URL).rstrip("/")
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        raise InputError("base_url is no http(s) URL; pass for example http://localhost:8000/v1") from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError("base_url is written to the manifest and must hold no key; pass the key by a variable")
    variable = settings.api_key_env or (None if settings.base_url else "OPENAI_API_KEY")
    key = _key(variable) if variable else None
    pattern = _spellings(key) if key else None
    shown = pattern.sub("[key]", url) if pattern else url
    if not is_url:
        raise InputError(f"base_url {shown!r} is no http(s) URL; pass for example http://localhost:8000/v1")
    client = openai.OpenAI(
        base_url=url,
        api_key=key or "none",
        max_retries=settings.max_retries,
        timeout=settings.timeout_seconds,
        default_headers={"Accept-Encoding": "identity"},  # so that the bound on a body is one on memory
        http_client=openai.DefaultHttpxClient(event_hooks={"response": [_bound_body]}),
    )
    return Endpoint(shown, client, pattern, settings.call_seconds)


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", variable):  # who passes the key itself shall not see it here
        raise InputError(
            "api_key_env is the name of an environment variable, as OPENAI_API_KEY; there is none of the name that came"
        )
    if not key:
        raise InputError(f"the environment variable {variable} is not set; put the endpoint's key there")
    if len(key) < MIN_KEY:
        raise InputError(
            f"the key in {variable} has {len(key)} characters, too few to be kept out of what is written; an endpoint "
            "that takes any key needs none"
        )
    if not re.fullmatch(r"[!-~]+", key):
        raise InputError(f"the key in {variable} has characters that no HTTP header can carry; set it again")
    return key


def _spellings(key: str) -> re.Pattern:
    """The key as a URL, JSON, HTML or Python may spell it."""
    spellings = {key, quote(key, safe=""), quote(key), json.dumps(key)[1:-1], repr(key)[1:-1], html.escape(key)}
    spellings |= {key.replace("/", r"\/"), html.escape(key, quote=False), json.dumps(json.dumps(key)[1:-1])[1:-1]}
    return re.compile("|".join(map(re.escape, sorted(spellings, key=len, reverse=True))), re.IGNORECASE)


class _UnreadableBody(ValueError):
    """A body that is not read to its end."""


def _bound_body(response: Any) -> None:
    """A hook of the HTTP client: the body is read as long as it is not too large."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise _UnreadableBody("the body is compressed, which was not asked for")
    stream = response.stream
    base = next(kind for kind in type(stream).__mro__ if kind.__name__ == "SyncByteStream")  # httpx's or httpx2's

    class Bounded(base):  # type: ignore[misc,valid-type]
        def __iter__(self) -> Iterator[bytes]:
            n_bytes = 0
            for piece in stream:
                n_bytes += len(piece)
                if n_bytes > MAX_BODY:
                    raise _UnreadableBody(f"the body is larger than {MAX_BODY} bytes")
                yield piece

        def close(self) -> None:
            stream.close()

    response.stream = Bounded()
