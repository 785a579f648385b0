"""Secrets among arguments: what must not be written into a file, a log or a model's card."""

import re
from collections.abc import Iterable
from typing import Any

HIDDEN = "<hidden>"
_NAME = re.compile(r"(^|_)(token|password|passwd|secret|credentials?|(api|access|auth|secret)_?key)$", re.IGNORECASE)
_SPECIAL_TOKEN = re.compile(r"^(bos|eos|pad|unk|sep|cls|mask)_token$")  # a tokenizer's: no secret
_SHAPE = re.compile(r"\b(hf_\w{16,}|sk-[\w-]{16,})|(?<=://)[^/\s@]+(?=@)")  # hub token, API key, user:password of a URL


def is_secret(name: str) -> bool:
    """Whether an argument of this name holds a secret, such as `hub_token`."""
    return bool(_NAME.search(name)) and not _SPECIAL_TOKEN.match(name)


def redacted(value: Any, instead: str | None = HIDDEN) -> Any:
    """A copy of `value` with `instead` for each secret: under a name that says so, or of a secret's usual shape.

    Args:
        value: dictionaries and lists of anything, at any depth.
        instead: stands where a secret was.
    """
    if isinstance(value, dict):
        return {
            k: instead if v and isinstance(k, str) and is_secret(k) else redacted(v, instead) for k, v in value.items()
        }
    if type(value) in (list, tuple):
        return type(value)(redacted(entry, instead) for entry in value)
    return _SHAPE.sub(HIDDEN, value) if isinstance(value, str) else value


def secrets_in(value: Any) -> set[str]:
    """The secrets that stand under a name that says so, at any depth of dictionaries and lists."""
    if isinstance(value, dict):
        named = {v for k, v in value.items() if isinstance(v, str) and v and isinstance(k, str) and is_secret(k)}
        return named.union(*(secrets_in(entry) for entry in value.values()))
    return set().union(*map(secrets_in, value)) if type(value) in (list, tuple) else set()


def redact_text(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` without these secrets, and without anything of a secret's usual shape."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return _SHAPE.sub(HIDDEN, text)
