import pytest

from ctxaware.runs.secrets import is_secret, redact_text, redacted, secrets_in


@pytest.mark.parametrize("name", ["hub_token", "token", "use_auth_token", "api_key", "OPENAI_API_KEY", "db_password"])
def test_names_that_say_so_hold_a_secret(name):
    assert is_secret(name)


@pytest.mark.parametrize("name", ["eos_token", "pad_token", "key", "max_new_tokens", "tokenizer", "trainable_tokens"])
def test_others_do_not(name):
    assert not is_secret(name)


def test_secrets_are_hidden_at_any_depth_and_the_rest_stays():
    value = {
        "hub_token": "t1",
        "seed": 7,
        "kwargs": [{"token": "t2", "dtype": "auto"}],
        "pad_token": "<pad>",
        "n": None,
    }
    assert redacted(value) == {
        "hub_token": "<hidden>",
        "seed": 7,
        "kwargs": [{"token": "<hidden>", "dtype": "auto"}],
        "pad_token": "<pad>",
        "n": None,
    }
    assert redacted({"hub_token": "t1"}, instead=None) == {"hub_token": None}
    assert secrets_in(value) == {"t1", "t2"}
    assert value["hub_token"] == "t1", "the input is left as it was"


def test_what_looks_like_a_secret_is_hidden_wherever_it_stands():
    text = "--data https://me:pw@host/x --note hf_abcdefghijklmnopqrst --x=sk-0123456789abcdef012 --hub_tok short"
    assert (
        redact_text(text, {"short"}) == "--data https://<hidden>@host/x --note <hidden> --x=<hidden> --hub_tok <hidden>"
    )
    assert redacted({"run_name": "hf_abcdefghijklmnopqrst"}) == {"run_name": "<hidden>"}
    assert redacted({"data": "hf_datasets/x"}) == {"data": "hf_datasets/x"}
