"""Whether a JSON value has the shape that a reader relies on; says where it has not."""

from typing import Any

from ctxaware.errors import InputError

_LIMIT = 1e15  # no figure of ours is larger, and pictures can't show one that is
NUMBER = float  # a number, whole or not; finite


class Maybe:
    """A value of a shape, or null, or an entry that is absent."""

    def __init__(self, shape: Any) -> None:
        self.shape = shape


def check_shape(value: Any, shape: Any, where: str) -> None:
    """Check a JSON value.

    Args:
        value: as `json.loads` gives it.
        shape: `str`, `int`, `NUMBER`, `dict` or `Maybe(shape)`; a list with the shape of every entry; a dictionary with
            the shape of each key's value, where `str` as a key stands for every key. Other keys may be there.
        where: names the value in the error.

    Raises:
        InputError: it has another shape.
    """
    if isinstance(shape, Maybe):
        if value is not None:
            check_shape(value, shape.shape, where)
    elif isinstance(shape, list) and isinstance(value, list):
        for i, entry in enumerate(value):
            check_shape(entry, shape[0], f"{where}[{i}]")
    elif isinstance(shape, dict) and isinstance(value, dict):
        for key in value if str in shape else shape:
            check_shape(value.get(key), shape.get(key, shape.get(str)), f"{where}.{key}"[:200])
    elif shape is NUMBER or shape is int:
        if isinstance(value, bool) or not isinstance(value, int if shape is int else int | float):
            raise _other(value, "a whole number" if shape is int else "a number", where)
        if not -_LIMIT < value < _LIMIT:  # NaN is not either
            raise _other(value, "a number that is not absurd", where)
    elif isinstance(shape, list | dict) or not isinstance(value, shape):
        kind = type(shape) if isinstance(shape, list | dict) else shape
        raise _other(value, {list: "a list", dict: "an object", str: "text"}[kind], where)


def _other(value: Any, expected: str, where: str) -> InputError:
    got = f"{value!r}"[:60] if isinstance(value, str | int | float | None) else type(value).__name__
    return InputError(f"{where}: expected {expected}, got {got}")
