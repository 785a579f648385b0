"""How a user's mistake reads, in Python and on a command line."""

import pickle

from ctxaware import InputError
from ctxaware.errors import print_error


def test_a_remedy_names_settings_as_the_reader_knows_them(capsys):
    error = InputError("out of memory with {x}", "lower {batch_tokens} or {max_length}")
    assert str(error) == "out of memory with {x}; lower batch_tokens or max_length"
    print_error(error, "--{}".format)
    assert capsys.readouterr().err == "error: out of memory with {x}; lower --batch_tokens or --max_length\n"


def test_an_error_survives_the_way_to_another_process():
    error = pickle.loads(pickle.dumps(InputError("got 9", "pass another {layer}")))
    assert error.describe(str.upper) == "got 9; pass another LAYER"


def test_an_error_without_a_remedy_is_its_message():
    assert str(InputError("got 9")) == "got 9"
    assert str(InputError("got\n9")).splitlines() == ["got", "9"]
