import pytest

from ctxaware.errors import InputError
from ctxaware.runs.shapes import NUMBER, Maybe, check_shape

SHAPE = {"name": str, "n": int, "mean": NUMBER, "rows": [{"score": NUMBER}], "by_task": {str: int}, "more": Maybe(dict)}
FITS = {"name": "x", "n": 1, "mean": 2, "rows": [{"score": 0.5, "extra": []}], "by_task": {"a": 1}}


def test_what_fits_passes_with_more_in_it():
    check_shape(FITS, SHAPE, "a.json")
    check_shape(FITS | {"more": {}, "rows": [], "by_task": {}}, SHAPE, "a.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": None}, r"a\.json\.name: expected text, got None"),
        ({"n": 1.5}, r"a\.json\.n: expected a whole number, got 1\.5"),
        ({"n": True}, "expected a whole number, got True"),
        ({"mean": float("nan")}, "expected a number that is not absurd, got nan"),
        ({"mean": 10**400}, "expected a number that is not absurd"),
        ({"rows": {"score": 1}}, r"a\.json\.rows: expected a list, got dict"),
        ({"rows": [{}]}, r"a\.json\.rows\[0\]\.score: expected a number, got None"),
        ({"by_task": {"a": "1"}}, r"a\.json\.by_task\.a: expected a whole number, got '1'"),
        ({"more": []}, r"a\.json\.more: expected an object, got list"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(InputError, match=message):
        check_shape(FITS | changes, SHAPE, "a.json")
