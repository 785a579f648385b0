"""Damaged files, for property tests: random bytes, truncations, flipped bytes, and JSON with other values.

A damaged file follows from a seed alone: thousands of them take a second, where hypothesis would take ten to draw as
many files by itself.
"""

import copy
import json
import random

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

_AT_A_TIME = 50  # files of one seed
DEEP = '{"a":' * 5000 + "1" + "}" * 5000
_ODD = (
    *(None, True, False, 0, 1, -1, 2, 2**70, -(2**70), 10**4000, 0.5, 1.5, -0.0, 1e308, 1e-320),
    *(float("nan"), float("inf"), -float("inf"), "", " ", "\ud800", "../..", "x" * 5000, "None", "é\0\n", "0.5"),
    *([], {}, [[]], [None], {"": None}, [1, "a", None], {"a": 1}, [{}], [[[[1]]]]),
)


def for_each_damaged(n: int, content: bytes, value=None, lines: bool = False):
    """Decorator of a test body that takes the bytes of a damaged file: calls it with `n` of them.

    Args:
        n: how many.
        content: of the whole file.
        value: what it says, where it is JSON; with `lines` the list of its lines' values.
        lines: one JSON value a line.
    """

    def decorate(body):
        # there is nothing to shrink in a seed, and drawing one takes longer than reading a file
        @settings(max_examples=-(-n // _AT_A_TIME), database=None, deadline=None, phases=[Phase.generate])
        @given(st.integers(0, 2**64 - 1))
        def run(seed):
            for i in range(min(n, _AT_A_TIME)):
                body(damaged(random.Random(f"{seed} {i}"), content, value, lines))

        return run

    return decorate


def damaged(rng: random.Random, content: bytes, value=None, lines: bool = False) -> bytes:
    """A damaged form of a file; arguments as for `for_each_damaged`."""
    if value is None or rng.random() < 1 / 3:
        return _bytes(rng, content)
    changed = _json(rng, value)
    if lines and isinstance(changed, list):
        return "".join(json.dumps(row) + "\n" for row in changed).encode()
    return json.dumps(changed).encode()


def _odd(rng):
    kind = rng.randrange(8)
    if kind == 0:
        return "".join(map(chr, rng.choices(range(0x250), k=rng.randrange(8))))
    if kind == 1:
        return rng.choice([rng.randrange(-(2**70), 2**70), rng.uniform(-2, 2), rng.uniform(-1e9, 1e9)])
    if kind == 2:
        return [rng.choice([None, rng.randrange(-9, 9), "ab"]) for _ in range(rng.randrange(3))]
    if kind == 3:
        return {rng.choice(["", "a", "id"]): rng.choice([None, rng.randrange(-9, 9)]) for _ in range(rng.randrange(3))}
    return copy.deepcopy(rng.choice(_ODD))


def _paths(value, at=()):
    """Every place in a JSON value, as keys from the root."""
    yield at
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from _paths(entry, (*at, key))


def _json(rng, value):
    """A copy of a JSON value in which an entry or two are gone, twice, or of another kind."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 2)):
        at = rng.choice(list(_paths(value)))
        if not at:
            if rng.randrange(10) == 0:
                return _odd(rng)
            continue
        place = value
        for key in at[:-1]:
            place = place[key]
        what = rng.choice(["other", "other", "gone", "twice"])
        if what == "other":
            place[at[-1]] = _odd(rng)
        elif what == "gone":
            del place[at[-1]]
        elif isinstance(place, list):
            place.insert(at[-1], copy.deepcopy(place[at[-1]]))
        else:
            place["another"] = place[at[-1]]
    return value


def _bytes(rng, content: bytes) -> bytes:
    """Bytes that are no, half, or nearly the content."""
    kind = rng.choice(["random", "cut", "flipped", "flipped", "flipped", "deep"])
    if kind == "random":
        return rng.randbytes(rng.randrange(200))
    if kind == "deep":
        at = rng.randint(0, len(content))
        return content[:at] + rng.choice([DEEP, "9" * 5000]).encode() + content[at:]
    if kind == "cut" or not content:
        return content[: rng.randint(0, len(content))]
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(changed)
