"""The prepared base: a base model with the chat template and the `[IND]` token, resized once and saved.

Full training, LoRA and QLoRA all start from it. An adapter trained on it holds LoRA and one row of the embedding, and
`lm_eval --model hf --model_args pretrained=PREPARED,peft=ADAPTER` finds token and template in the base.
"""

import hashlib
from pathlib import Path

from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from ctxaware.errors import InputError
from ctxaware.indicator.token import INDICATOR, add_indicator
from ctxaware.models import is_adapter, load_config, load_tokenizer, model_fingerprint, window_of
from ctxaware.runs.claim import CONFIGURATION, describe_difference, locked, read_manifest, write_manifest
from ctxaware.runs.files import whole_folder
from ctxaware.runs.processes import on_main, whole_models
from ctxaware.training.arguments import Arguments
from ctxaware.training.templates import chat_template

PREPARED = "prepared.json"  # the manifest of a prepared base


def training_tokenizer(name: str, revision: str | None = None, template: str = "tinyllama") -> PreTrainedTokenizerBase:
    """The tokenizer of a base model with the template of training, and a token for padding (EOS where it has none).

    Args:
        name: hub name or folder of the base.
        revision: branch, tag or commit.
        template: as for `chat_template`.
    """
    tokenizer = load_tokenizer(name, revision)
    tokenizer.chat_template = chat_template(template, tokenizer)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def prepare_base(
    name: str, out: Path, revision: str | None = None, template: str = "tinyllama", untied: bool = False
) -> Path:
    """Save a base model with the template and `[IND]`, whose new row is the exact mean of the old ones.

    A base that has the token already is its own prepared base; an adapter is merged. What `out` holds is used again.

    Args:
        name: hub name or folder of the base.
        out: the folder to write.
        revision: branch, tag or commit.
        template: as for `chat_template`.
        untied: give the output matrix a copy of its own where it is tied to the embedding. An adapter needs it: one
            that trains a row of a tied embedding can't be loaded by the harness (its `tie_weights` fails on it).

    Returns:
        The prepared base's folder, absolute, as adapters remember it.

    Raises:
        InputError: `out` holds something else.
    """
    import torch

    from ctxaware.models import load_model

    tokenizer = training_tokenizer(name, revision, template)
    config = load_config(name, revision)
    untied = untied and config.get_text_config().tie_word_embeddings
    is_whole = Path(name).is_dir() and not is_adapter(name)
    if INDICATOR in tokenizer.get_vocab() and is_whole and not untied:
        return Path(name).resolve()
    configuration = {
        "base": name,
        "revision": model_fingerprint(name, revision),
        "chat_template_sha256": hashlib.sha256(tokenizer.chat_template.encode()).hexdigest(),
        "untied": untied,
    }
    if not out.exists():
        with locked(out.with_name(f".{out.name}.lock"), out, wait=True):  # two runs may share a base
            if not out.exists():
                dtype = config.dtype or torch.float32  # as it is stored: nothing but the new row may change
                model = load_model(name, revision, dtype, "cpu")
                add_indicator(tokenizer, model)
                if untied:
                    model.config.get_text_config().tie_word_embeddings = False
                    head = model.get_output_embeddings()
                    head.weight = torch.nn.Parameter(head.weight.detach().clone())
                with whole_folder(out) as unfinished:
                    model.save_pretrained(unfinished)
                    tokenizer.save_pretrained(unfinished)
                    write_manifest(unfinished / PREPARED, {CONFIGURATION: configuration})
    stored, remedy = read_manifest(out / PREPARED, out), "remove it or pass another {prepared_base}"
    if stored is None:
        raise InputError(f"{out} holds something else than a prepared base", remedy)
    if difference := describe_difference(stored[CONFIGURATION], configuration):
        raise InputError(f"{out} holds a base prepared with {difference}", remedy)
    return out.resolve()


def check_window(base: str, revision: str | None, max_length: int | None) -> None:
    """Check that conversations of so many tokens fit a base.

    Raises:
        InputError: they are past its window.
    """
    window = window_of(load_config(base, revision))
    if window and max_length and max_length > window:
        raise InputError(
            f"max_length {max_length} is longer than this model's window of {window} tokens",
            f"pass {{max_length}} {window} or less",
        )


def vanilla_base(arguments: Arguments) -> tuple[str, PreTrainedTokenizerBase]:
    """The base's name and its tokenizer with the template of training."""
    model = arguments.model
    name = model.model_name_or_path
    check_window(name, model.model_revision, arguments.training.max_length)
    tokenizer = training_tokenizer(name, model.model_revision, arguments.run.chat_template)
    # an adapter names its base, and is found from any folder
    return str(Path(name).resolve()) if Path(name).is_dir() else name, tokenizer


def indicator_base(arguments: Arguments) -> tuple[str, PreTrainedTokenizerBase]:
    """The prepared base's folder and its tokenizer; the base is prepared where it is not yet."""
    model, out = arguments.model, arguments.training.output_dir
    folder = Path(arguments.of_indicator().prepared_base or f"{out.rstrip('/')}-base")
    template, name = arguments.run.chat_template, model.model_name_or_path
    check_window(name, model.model_revision, arguments.training.max_length)
    with whole_models(arguments.training.deepspeed_plugin):
        prepared = on_main(
            PartialState(), lambda: str(prepare_base(name, folder, model.model_revision, template, model.use_peft))
        )
    return prepared, training_tokenizer(prepared, None, template)
