"""Chat templates for training, which are also those of evaluation: the template is saved with the model.

`tinyllama` is TinyLlama's own with two additions: it writes the BOS token (a trainer that tokenises rendered
conversations adds none, an evaluation does), and `{% generation %}` stands around what an assistant writes, its EOS
token included, so that the loss can be taken of responses alone.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from ctxaware.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OWN = "own"  # the model's own template
_FOLDER = Path(__file__).parent


def chat_template(name: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The text of a chat template.

    Args:
        name: of a file in this folder, without its ending, or `own`.
        tokenizer: whose template `own` stands for.

    Raises:
        InputError: there is no such template, or the tokenizer has none of its own, or lacks a token that it writes.
    """
    if name == OWN:
        if not tokenizer.chat_template:
            raise InputError(f"{tokenizer.name_or_path} has no template of its own", "pass {chat_template} tinyllama")
        try:
            return str(tokenizer.get_chat_template())  # the default one, where it has several
        except ValueError as error:
            raise InputError(
                f"{tokenizer.name_or_path} has several templates and none is the default",
                "pass {chat_template} tinyllama",
            ) from error
    file = _FOLDER / f"{name}.jinja"
    if not file.is_file():
        known = ", ".join([*sorted(path.stem for path in _FOLDER.glob("*.jinja")), OWN])
        raise InputError(f"chat_template must be one of {known}, got {name!r}")
    if tokenizer.eos_token is None:
        raise InputError(f"{tokenizer.name_or_path} has no EOS token, with which this template closes each message")
    text = file.read_text(encoding="utf-8")
    return text if tokenizer.bos_token else text.replace("{{ bos_token }}", "")  # some models have none
