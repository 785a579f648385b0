import pytest
import torch
from support import tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from ctxaware.errors import InputError
from ctxaware.indicator.marking import append_indicator
from ctxaware.indicator.token import INDICATOR, add_indicator, indicator_id


def test_appending_closes_an_open_sentence_first():
    assert append_indicator("Who was there?") == "Who was there? [IND]"
    assert append_indicator("List them all") == "List them all. [IND]"
    assert append_indicator("in 1850") == "in 1850. [IND]"
    assert append_indicator("(a note)") == "(a note) [IND]"
    assert append_indicator("Wo war Jürß") == "Wo war Jürß. [IND]"
    assert append_indicator("") == " [IND]"


def test_a_tokenizer_without_the_token_is_an_error(tokenizer):
    with pytest.raises(InputError, match=r"has no single \[IND\] token"):
        indicator_id(tokenizer)


def test_the_token_takes_its_space_with_it_and_survives_saving(tokenizer, tmp_path):
    token_id = add_indicator(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert indicator_id(each) == token_id
        plain = each("Who was there?", add_special_tokens=False)["input_ids"]
        assert each(append_indicator("Who was there?"), add_special_tokens=False)["input_ids"] == [*plain, token_id]
        assert each.decode([*plain, token_id], skip_special_tokens=True) == "Who was there?"
    assert add_indicator(tokenizer) == token_id  # again: nothing more is added


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("multiple", [None, 64])
def test_new_rows_are_the_exact_mean_and_reload_exactly(tmp_path, tied, multiple):
    tokenizer = tiny.byte_level_tokenizer()
    model = tiny.tiny_llama(len(tokenizer), tie_word_embeddings=tied)
    old = [m.weight.detach().clone() for m in (model.get_input_embeddings(), model.get_output_embeddings())]
    token_id = add_indicator(tokenizer, model, pad_to_multiple_of=multiple)
    for matrix, before in zip((model.get_input_embeddings(), model.get_output_embeddings()), old, strict=True):
        assert torch.equal(matrix.weight[: len(before)], before)
        assert torch.equal(matrix.weight[token_id], before.double().mean(dim=0).float())
    if multiple:
        assert model.get_input_embeddings().weight.shape[0] % multiple == 0
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, token_id, 7]])
    assert torch.equal(model(ids).logits, again(ids).logits)


def test_a_padded_embedding_gets_one_row_and_keeps_its_padding():
    tokenizer = tiny.byte_level_tokenizer()
    model = tiny.tiny_llama(len(tokenizer) + 40)
    before = model.get_input_embeddings().weight.detach().clone()
    token_id = add_indicator(tokenizer, model)
    after = model.get_input_embeddings().weight
    assert after.shape == before.shape
    assert torch.equal(after[token_id], before[:token_id].double().mean(dim=0).float())
    assert torch.equal(after[token_id + 1 :], before[token_id + 1 :])
    assert tokenizer.convert_ids_to_tokens(token_id) == INDICATOR
