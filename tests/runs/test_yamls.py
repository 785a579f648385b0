import pytest

from ctxaware.errors import InputError
from ctxaware.runs.yamls import read_yaml

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)


def read(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(path)


def test_plain_values_are_read_and_a_date_stays_text(tmp_path):
    text = "a: 1\nb: [x, 2.0e-5, true, null]\nc: {d: 2026-01-01, e: 2026-13-45}\n"
    assert read(tmp_path, text) == {
        "a": 1,
        "b": ["x", 2e-5, True, None],
        "c": {"d": "2026-01-01", "e": "2026-13-45"},
    }


def test_anchors_and_merges_are_read(tmp_path):
    assert read(tmp_path, "x: &x {a: 1}\ny: {<<: *x, b: 2}\n")["y"] == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\na: 2\n", "a comes twice, near line 1"),
        ("x:\n  b: 1\n  b: 2\n", "b comes twice, near line 2"),
        ("out: &a [*a]\n", "holds itself"),
        (BOMB, "more than 100,000 values"),
        ("a: " + "[" * 3000 + "]" * 3000, "is no YAML"),
        ("a: " + "9" * 5000, "is no YAML"),
        ("a: !!python/object/apply:os.system [ls]", "no plain value"),
        ("a: !!binary aGk=", "no plain value"),
        ("a: [", "is no YAML"),
        (b"a: \xff", "can't read"),
    ],
)
def test_what_no_person_means_is_one_line(tmp_path, text, says):
    with pytest.raises(InputError, match=says) as error:
        read(tmp_path, text)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="can't read"):
        read_yaml(tmp_path / "none.yaml")
