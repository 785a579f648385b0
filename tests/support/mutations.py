"""Damaged files, for property tests: random bytes, truncations, flipped bytes, and JSON with other values."""

import copy
import json

from hypothesis import strategies as st

DEEP = '{"a":' * 5000 + "1" + "}" * 5000
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["", " ", "\ud800", "../..", "x" * 5000, [], {}, [[]], [None], {"": None}, 10**4000, "None"]),
    st.lists(st.one_of(st.none(), st.integers(-9, 9), st.text(max_size=3)), max_size=3),
    st.dictionaries(st.text(max_size=3), st.one_of(st.none(), st.integers(-9, 9)), max_size=2),
)


def paths(value, at=()):
    """Every place in a JSON value, as keys from the root."""
    yield at
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from paths(entry, (*at, key))


@st.composite
def json_mutations(draw, value):
    """A copy of a JSON value in which an entry or two are gone, twice, or of another kind."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.sampled_from(list(paths(value))))
        if not at:
            if draw(st.integers(0, 9)) == 0:
                return copy.deepcopy(draw(ODD))
            continue
        place = value
        for key in at[:-1]:
            place = place[key]
        what = draw(st.sampled_from(["other", "other", "gone", "twice"]))
        if what == "other":
            place[at[-1]] = copy.deepcopy(draw(ODD))  # a second mutation may change it
        elif what == "gone":
            del place[at[-1]]
        elif isinstance(place, list):
            place.insert(at[-1], copy.deepcopy(place[at[-1]]))
        else:
            place["another"] = place[at[-1]]
    return value


@st.composite
def byte_mutations(draw, content):
    """Bytes that are no, half, or nearly the content."""
    kind = draw(st.sampled_from(["random", "cut", "flipped", "flipped", "deep"]))
    if kind == "random":
        return draw(st.binary(max_size=200))
    if kind == "deep":
        at = draw(st.integers(0, len(content)))
        return content[:at] + draw(st.sampled_from([DEEP, "9" * 5000])).encode() + content[at:]
    if kind == "cut" or not content:
        return content[: draw(st.integers(0, len(content)))]
    damaged = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        damaged[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(damaged)


def damaged(content: bytes, value=None, lines=False):
    """Damaged forms of a file.

    Args:
        content: of the whole file.
        value: what it says, where it is JSON; with `lines` the list of its lines' values.
        lines: one JSON value a line.
    """
    if value is None:
        return byte_mutations(content)

    def write(changed):
        if lines and isinstance(changed, list):
            return "".join(json.dumps(row) + "\n" for row in changed).encode()
        return json.dumps(changed).encode()

    return st.one_of(byte_mutations(content), json_mutations(value).map(write), json_mutations(value).map(write))
