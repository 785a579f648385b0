"""`ctxaware heads`: the needle is the answer, its tokens are found by position, the file says whose heads they are."""

import dataclasses
import json
import re

import numpy as np
import pytest
from support import tiny
from support.chats import sharp_llama
from typer.testing import CliRunner

from ctxaware.attention.check import eager_mass
from ctxaware.commands.app import app
from ctxaware.errors import InputError
from ctxaware.harness.grid import needle_documents
from ctxaware.harness.needles import load_needle
from ctxaware.harness.settings import NeedleSettings
from ctxaware.models import load_model, load_tokenizer, model_fingerprint
from ctxaware.report.head_search import answered_prompt, find_heads

SETTINGS = NeedleSettings(max_context_length=420, num_context_lengths=2, num_depths=3, needle="pizza", source="builtin")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads") / "chat"
    tokenizer = tiny.byte_level_tokenizer()
    sharp_llama(n_layers=3, vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("template", ["CHATML", "ZEPHYR", None])
@pytest.mark.parametrize("needle", ["sf", "pizza"])
def test_needle_and_answer_are_where_they_stand(tokenizer, template, needle):
    tokenizer.chat_template = getattr(tiny, template) if template else None
    settings = dataclasses.replace(SETTINGS, needle=needle)
    sentence, prefix = load_needle(needle).needle, load_needle(needle).response_prefix
    for doc in needle_documents(settings, tokenizer):
        prompt = answered_prompt(tokenizer, doc, settings)
        ids = prompt.input_ids
        # at depth 0% the needle opens the document, at 100% it closes it: a token may hold a neighbour's character
        assert sentence in tokenizer.decode(ids[prompt.is_needle])
        assert len(tokenizer.decode(ids[prompt.is_needle]).strip()) <= len(sentence) + 2
        assert tokenizer.decode(ids[prompt.rows + 1]).strip() == sentence[len(prefix) :].strip()
        assert prompt.rows[-1] == len(ids) - 2
        assert tokenizer.decode(ids[: prompt.rows[0] + 1]).endswith(prefix)
        assert not prompt.is_user[prompt.rows[0]]
        assert not prompt.is_user[0]
        assert doc["question"] in tokenizer.decode(ids[prompt.is_user])
        assert (prompt.is_needle <= prompt.is_user).all()


def test_the_file_holds_the_heads_of_this_very_model(folder, tmp_path):
    out = tmp_path / "heads.json"
    told = find_heads(str(folder), SETTINGS, "float32", out)
    assert json.loads(out.read_text()) == told
    assert out.with_suffix(".png").stat().st_size > 0
    assert told["fingerprint"] == model_fingerprint(str(folder))
    assert (told["n_layers"], told["n_heads"], told["n_prompts"], told["with_template"]) == (3, 4, 6, True)
    assert [head["layer_idx"] for head in told["retrieval_heads"]] == [0, 1, 2]
    assert len(told["ranking"]) == 12
    user, needle = plain_means(folder)
    for head in told["retrieval_heads"]:
        of_layer = user[:, head["layer_idx"]]
        counts = np.bincount(of_layer.argmax(axis=1), minlength=4)
        assert counts[head["head_idx"]] == counts.max()
        assert head["agreement"] == pytest.approx(counts.max() / 6)
        assert head["user"] == pytest.approx(of_layer[:, head["head_idx"]].mean(), abs=1e-5)
    order = [(head["layer_idx"], head["head_idx"]) for head in told["ranking"]]
    assert order == sorted(order, key=lambda at: -needle[:, at[0], at[1]].mean())
    assert told["ranking"][0]["needle"] == pytest.approx(needle.mean(axis=0).max(), abs=1e-5)
    assert needle.mean(axis=0).std() > 0.01, "the example must tell heads apart"


def plain_means(folder):
    """Masses on user and needle from the matrices: each `[n_prompts, n_layers, n_heads]`."""
    import torch

    tokenizer, model = load_tokenizer(str(folder)), load_model(str(folder), None, "float32", "cpu")
    user, needle = [], []
    for doc in needle_documents(SETTINGS, tokenizer):
        prompt = answered_prompt(tokenizer, doc, SETTINGS)
        groups = torch.from_numpy(np.stack([prompt.is_user, prompt.is_needle]))[None]
        mass = eager_mass(model, torch.from_numpy(prompt.input_ids)[None], groups, range(3))
        stacked = np.stack([mass[i][0].numpy() for i in range(3)])  # [n_layers, n_heads, n_tokens, 2]
        user.append(stacked[:, :, prompt.rows[0], 0])
        needle.append(stacked[:, :, prompt.rows, 1].mean(axis=2))
    return np.stack(user), np.stack(needle)


def test_the_command_prints_a_line_a_layer(folder, tmp_path):
    options = ["--grid", "1x2", "--max-context-length", "420", "--source", "builtin", "--out", str(tmp_path / "h.json")]
    done = CliRunner().invoke(app, ["heads", str(folder), *options], catch_exceptions=False)
    assert done.exit_code == 0
    assert re.search(r"\n +2 +\d +(1.00|0.50)  0\.\d{3}\n", done.output)
    assert "heads that read the needle most" in done.output


def needle_file(path, needle, keyword):
    path.write_text(json.dumps({"needle": needle, "question": "What?", "keywords": [keyword]}))
    return dataclasses.replace(SETTINGS, needle=str(path))


def test_a_needle_that_leaves_nothing_to_answer_is_refused(folder, tmp_path):
    settings = needle_file(tmp_path / "short.json", "The colour is blue.", "blue")
    with pytest.raises(InputError, match=r"the needle must be its response prefix 'The colour is blue\.' and more"):
        find_heads(str(folder), settings, "float32", tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_a_needle_that_the_haystack_holds_too_is_refused(folder, tmp_path):
    sentence = "The best colour of a gate by the sea is plainly blue."
    (tmp_path / "hay.txt").write_text(f"Some text stands here. {sentence} " + "And more of it follows. " * 200)
    settings = dataclasses.replace(
        needle_file(tmp_path / "n.json", sentence, "blue"), haystack=str(tmp_path / "hay.txt")
    )
    with pytest.raises(InputError, match="must stand in the prompt once, and does 2 times"):
        find_heads(str(folder), settings, "float32", tmp_path / "out.json")


def test_a_prompt_past_the_window_is_refused(tmp_path):
    path = tiny.save_model(tmp_path / "small", tiny.byte_level_tokenizer(), max_position_embeddings=300)
    with pytest.raises(InputError, match="max_context_length 420 is past the window of 300 tokens"):
        find_heads(str(path), SETTINGS, "float32", tmp_path / "out.json")
