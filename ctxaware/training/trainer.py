"""The trainer: full fine-tuning, LoRA or QLoRA; the row of `[IND]` is trained in all of them."""

from pathlib import Path

import torch
from datasets import Dataset
from peft.utils.other import AuxiliaryTrainingWrapper
from transformers import PreTrainedTokenizerBase
from trl import SFTTrainer, get_peft_config, get_quantization_config

from ctxaware.errors import InputError
from ctxaware.indicator.token import INDICATOR, indicator_id
from ctxaware.models import check_checkpoint, check_rows, is_adapter, load_config
from ctxaware.runs.processes import is_sharded, whole_models
from ctxaware.training.arguments import Arguments
from ctxaware.training.card import ProvenanceTrainer
from ctxaware.training.checkpoints import CompleteCheckpoints
from ctxaware.training.health import FiniteTraining


def build_trainer(arguments: Arguments, base: str, tokenizer: PreTrainedTokenizerBase, dataset: Dataset) -> SFTTrainer:
    """The trainer, with LoRA or QLoRA where the arguments ask for it; the row of `[IND]` is trained in all of them."""
    training, model = arguments.training, arguments.model
    training.model_init_kwargs = {
        "dtype": model.dtype,
        "attn_implementation": model.attn_implementation,
        "revision": None if Path(base).is_dir() else model.model_revision,
        **(training.model_init_kwargs or {}),
    }
    revision = training.model_init_kwargs["revision"]
    check_checkpoint(base, revision)  # TRL would train layers that the files lack from random weights
    if is_adapter(base, revision):
        raise InputError(
            f"{base} is an adapter, and training on it would make an adapter on an adapter; merge it into its base "
            "(PEFT's merge_and_unload), save the model",
            "pass its folder as {model_name_or_path}",
        )
    training.assistant_only_loss = False  # the labels say it already; TRL would ask for messages
    peft_config = get_peft_config(model)
    if peft_config is not None and INDICATOR in tokenizer.get_vocab():
        if load_config(base, revision).get_text_config().tie_word_embeddings:
            raise InputError(
                f"{base} has tied embeddings, so the harness could not load an adapter with a row of its own for "
                f"{INDICATOR}; pass a base that sft_indicator.py prepared for an adapter, or one without the token"
            )
        with whole_models(arguments.training.deepspeed_plugin):
            names = _embedding_names(base, revision)
        peft_config.trainable_token_indices = {name: [indicator_id(tokenizer)] for name in names}
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
            callbacks=[FiniteTraining(), CompleteCheckpoints()],  # bad weights are no complete checkpoint
        )
    except (ValueError, ImportError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "install" not in str(error):  # else of a package that is not there
            raise
        raise InputError(f"the trainer refuses these arguments: {' '.join(str(error).split())}") from error
    if arguments.run.merge and is_sharded(trainer.accelerator):
        raise InputError(
            "merging compares logits with the model in training, whose weights FSDP or DeepSpeed shard",
            "leave out {merge}, and merge the saved adapter with PEFT's merge_and_unload",
        )
    check_rows(trainer.model.get_input_embeddings().weight.shape[0], _largest_id(dataset))
    trainer.arguments = arguments
    if isinstance(head := trainer.model.get_output_embeddings(), AuxiliaryTrainingWrapper):
        head.bias = None  # TRL's fused head asks for it, and PEFT's wrapper passes on the weight alone
    for parameter in trainer.model.parameters():
        if peft_config is not None and parameter.requires_grad:
            # TRL makes those of a 4-bit model bfloat16, from which a run that is taken up would diverge
            parameter.data = parameter.data.float()
    return trainer


def _largest_id(dataset: Dataset) -> int:
    """The largest token id of a training set; -1 of an empty one."""
    import pyarrow.compute as pc

    tables = dataset.select_columns("input_ids").with_format("arrow").iter(batch_size=10_000)
    return max((pc.max(pc.list_flatten(table["input_ids"])).as_py() or 0 for table in tables), default=-1)


def _embedding_names(base: str, revision: str | None) -> list[str]:
    """The names that PEFT looks for, the last part of a module's path: of the input embedding and the output matrix.

    Without its row of the output matrix, which starts as the mean of the others, no model could ever predict `[IND]`:
    by Jensen's inequality its probability would stay below one in the size of the vocabulary. An output matrix with a
    bias is left out: PEFT's layer would drop the bias.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_config(base, revision))
    head = model.get_output_embeddings()
    chosen = [
        model.get_input_embeddings(),
        *([] if head is None or getattr(head, "bias", None) is not None else [head]),
    ]
    names = {module: name.rpartition(".")[2] for name, module in model.named_modules()}
    return [names[module] for module in chosen]
