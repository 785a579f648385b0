"""What the recipes share: data, model, trainer, and a run that takes itself up where it was interrupted."""

import functools
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from trl import SFTTrainer, get_peft_config, get_quantization_config

from ctxaware import preparing
from ctxaware.arguments import Arguments
from ctxaware.checkpoints import DATA, CompleteCheckpoints, claim_output, mark_finished, newest_complete
from ctxaware.conversations import find_file, fingerprint, n_instructions
from ctxaware.data_selection import DataSelectionCallback, Encoder, TurnTable
from ctxaware.errors import InputError, print_error
from ctxaware.indicator import INDICATOR, indicator_id
from ctxaware.merging import merge_adapter
from ctxaware.models import load_config, resolved_revision
from ctxaware.prepared import prepare_base, training_tokenizer
from ctxaware.processes import is_sharded, on_main, whole_models
from ctxaware.provenance import ProvenanceTrainer
from ctxaware.run_scores import find_scores

# arguments that change nothing in the weights: a run may be taken up with others
_FREE = ("disable_tqdm", "hub_", "log", "push_to_hub", "report_to", "run_name", "save_", "local_rank")
_FREE += tuple(f"dataloader_{name}" for name in ("num_workers", "persistent_workers", "pin_memory", "prefetch_factor"))


def recipe(main: Callable[[], None]) -> Callable[[], None]:
    """Decorator of a recipe's `main`: a user's mistake is one line and exit code 2; processes end together."""

    @functools.wraps(main)
    def run() -> None:
        try:
            main()
        except InputError as error:
            if not PartialState().is_main_process:
                error = f"process {PartialState().process_index}: {error}"  # perhaps its own alone
            print_error(error)
            sys.exit(2)
        finally:
            PartialState().destroy_process_group()

    return run


def say(text: str) -> None:
    """Print, in the main process."""
    if PartialState().is_main_process:
        print(text, flush=True)


def start(arguments: Arguments) -> bool:
    """Claim the output folder for this run.

    Returns:
        False where the run is finished already.

    Raises:
        InputError: the folder holds a run of another configuration.
    """
    training, state = arguments.training, PartialState()
    out = Path(training.output_dir)
    if on_main(state, lambda: claim_output(out, configuration(arguments))):
        say(f"{out} is trained already")
        if training.push_to_hub:
            say(f"to push it: hf upload {training.hub_model_id or 'OWNER/NAME'} {out} --exclude '_*' 'checkpoint-*'")
        return False
    say(
        f"{state.num_processes} process{'es' if state.num_processes > 1 else ''} x "
        f"{training.per_device_train_batch_size} conversations x {training.gradient_accumulation_steps} steps of "
        "accumulation = effective batch of "
        f"{arguments.run.effective_batch_size}"
    )
    return True


def configuration(arguments: Arguments) -> dict:
    """All that could change the weights: arguments, and what the names in them stand for."""
    model, run = arguments.model, arguments.run
    found = asdict(run) | asdict(model) | (asdict(arguments.indicator) if arguments.indicator else {})
    found |= {k: v for k, v in arguments.training.to_dict().items() if not k.startswith(_FREE)}
    found["num_processes"] = PartialState().num_processes
    config = load_config(model.model_name_or_path, model.model_revision)
    found["base_weights"] = resolved_revision(model.model_name_or_path, config)
    files = {"data": run.data, "scores": arguments.indicator.scores if arguments.indicator else None}
    for name, path in files.items():
        if path and Path(path).exists():
            release = preparing.DATASETS.get(run.dataset) if name == "data" else None
            found[f"{name}_sha256"] = fingerprint(find_file(path, release.file if release else None))
    return found


def load_conversations(arguments: Arguments) -> Dataset:
    """Clean conversations (`id`, `messages`), written once into `_data/` of the output folder with their counts.

    Raises:
        InputError: there are none, or the file is broken.
    """
    run, folder = arguments.run, Path(arguments.training.output_dir) / DATA

    def prepare() -> dict | None:
        if (folder / preparing.STATISTICS).is_file():  # of this run, interrupted before
            return None
        return preparing.prepare_dataset(
            preparing.PrepareRun(run.data, run.dataset, folder, revision=run.data_revision)
        )

    if (told := on_main(PartialState(), prepare)) is not None:
        changes = {name: n for name, n in told["removed_or_repaired"].items() if n}
        say(f"data: {told['conversations']:,} conversations, {told['instructions']:,} instructions")
        say("".join(f"  {n:>8,} {name.replace('_', ' ')}\n" for name, n in changes.items()).rstrip() or "  all clean")
    return Dataset.from_parquet(str(find_file(folder)))


def make_encoder(arguments: Arguments, tokenizer) -> Encoder:
    """What turns messages into token ids and labels in this run."""
    return Encoder(tokenizer, arguments.training.max_length, arguments.training.assistant_only_loss)


def encode_dataset(
    conversations: Dataset, encode: Encoder, selected: TurnTable | None = None, num_proc: int | None = None
) -> Dataset:
    """The training set: `input_ids`, `labels`, and `row`, the conversation's place among `conversations`.

    Args:
        conversations: with `messages`.
        encode: of the run.
        selected: which turns carry `[IND]`, for a set that is marked beforehand; None for none.
        num_proc: processes.
    """

    def encoded(example: dict, row: int) -> dict:
        marks = [False] * n_instructions(example["messages"]) if selected is None else selected.of(row)
        return encode(example["messages"], marks) | {"row": row}

    return conversations.map(
        encoded,
        with_indices=True,
        remove_columns=conversations.column_names,
        num_proc=num_proc,
        desc="Tokenizing",
        load_from_cache_file=False,
        keep_in_memory=num_proc is None and len(conversations) < 10_000,
    )


def vanilla_base(arguments: Arguments) -> tuple[str, object]:
    """The base's name and its tokenizer with the template of training."""
    model = arguments.model
    tokenizer = training_tokenizer(model.model_name_or_path, model.model_revision, arguments.run.chat_template)
    return model.model_name_or_path, tokenizer


def indicator_base(arguments: Arguments) -> tuple[str, object]:
    """The prepared base's folder and its tokenizer; the base is prepared where it is not yet."""
    model, out = arguments.model, arguments.training.output_dir
    folder = Path(arguments.indicator.prepared_base or f"{out.rstrip('/')}-base")
    template, name = arguments.run.chat_template, model.model_name_or_path
    with whole_models(arguments.training.deepspeed_plugin):
        prepared = on_main(
            PartialState(), lambda: str(prepare_base(name, folder, model.model_revision, template, model.use_peft))
        )
    return prepared, training_tokenizer(prepared, None, template)


def build_trainer(arguments: Arguments, base: str, tokenizer, dataset: Dataset) -> SFTTrainer:
    """The trainer, with LoRA or QLoRA where the arguments ask for it; the row of `[IND]` is trained in all of them."""
    training, model = arguments.training, arguments.model
    training.model_init_kwargs = {
        "dtype": model.dtype,
        "attn_implementation": model.attn_implementation,
        "revision": None if Path(base).is_dir() else model.model_revision,
        **(training.model_init_kwargs or {}),
    }
    revision = training.model_init_kwargs["revision"]
    training.assistant_only_loss = False  # the labels say it already; TRL would ask for messages
    peft_config = get_peft_config(model)
    if peft_config is not None and INDICATOR in tokenizer.get_vocab():
        if load_config(base, revision).get_text_config().tie_word_embeddings:
            raise InputError(
                f"{base} has tied embeddings, so the harness could not load an adapter with a row of its own for "
                f"{INDICATOR}; pass a base that sft_indicator.py prepared for an adapter, or one without the token"
            )
        with whole_models(arguments.training.deepspeed_plugin):
            peft_config.trainable_token_indices = {_embedding_name(base, revision): [indicator_id(tokenizer)]}
    if peft_config is not None:
        peft_config.revision = revision  # where the base is found again
    try:
        trainer = ProvenanceTrainer(
            model=base,
            args=training,
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=peft_config,
            quantization_config=get_quantization_config(model),
            callbacks=[CompleteCheckpoints()],
        )
    except ValueError as error:
        raise InputError(f"the trainer refuses these arguments: {' '.join(str(error).split())}") from error
    if arguments.run.merge and is_sharded(trainer.accelerator):
        raise InputError(
            "--merge compares logits with the model in training, whose weights FSDP or DeepSpeed shard; leave it out, "
            "and merge the saved adapter with PEFT's merge_and_unload"
        )
    trainer.arguments = arguments
    for parameter in trainer.model.parameters():
        if peft_config is not None and parameter.requires_grad:
            # TRL makes those of a 4-bit model bfloat16, from which a run that is taken up would diverge
            parameter.data = parameter.data.float()
    return trainer


def _embedding_name(base: str, revision: str | None) -> str:
    """The name that PEFT looks for: the last part of the path of the input embedding's module."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_config(base, revision))
    embedding = model.get_input_embeddings()
    return next(name for name, module in model.named_modules() if module is embedding).rpartition(".")[2]


def data_selection(arguments: Arguments, conversations: Dataset, encode: Encoder) -> DataSelectionCallback:
    """The callback that decides which instructions carry `[IND]`, with its scores."""
    wanted = arguments.indicator
    scores, layer = find_scores(arguments)
    rescore = layer if wanted.rescore_each_epoch else None
    return DataSelectionCallback(conversations, encode, wanted.threshold, scores, rescore)


def train_and_save(trainer: SFTTrainer, arguments: Arguments) -> None:
    """Train, from the newest complete checkpoint if there is one, and save model and tokenizer."""
    out = Path(arguments.training.output_dir)
    checkpoint, passed_over = on_main(PartialState(), lambda: newest_complete(out))
    for folder in passed_over:
        say(f"{folder} is incomplete and passed over")
    if checkpoint:
        say(f"taking up the run at {checkpoint}")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.save_model(_internal_call=True)  # pushed below, with its card
    trainer.create_model_card(model_name=out.name)  # last: PEFT has written one of its own
    if arguments.run.merge:
        on_main(PartialState(), lambda: _merge(trainer, arguments, out / "merged"))
    if arguments.training.push_to_hub:
        trainer.push_to_hub()
    on_main(PartialState(), lambda: mark_finished(out))
    say(f"saved to {out}")


def _merge(trainer: SFTTrainer, arguments: Arguments, out: Path) -> None:
    base = trainer.model.peft_config["default"].base_model_name_or_path
    samples = [ids[:512] for ids in trainer.train_dataset[:8]["input_ids"]]
    moved = merge_adapter(trainer.model, trainer.processing_class, base, out, arguments.model.dtype, samples)
    say(f"merged into {out}; against the trained model its logits moved by at most {moved:.2g}")
