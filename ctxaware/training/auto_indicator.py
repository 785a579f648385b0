"""The automatic indicator of a model that has just been trained: written beside it at the end of training."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctxaware.auto.fit import fit, labelled_turns
from ctxaware.auto.indicator import FILE
from ctxaware.auto.methods import PROBE, SLOT, usual_layer
from ctxaware.auto.weights import weights_fingerprint
from ctxaware.errors import InputError
from ctxaware.runs.processes import is_sharded
from ctxaware.training.arguments import Arguments
from ctxaware.training.callback import DataSelectionCallback

if TYPE_CHECKING:
    from trl import SFTTrainer

N_CONVERSATIONS = 128  # that are read: a minute for a small model on two cores


def fit_auto_indicator(trainer: "SFTTrainer", arguments: Arguments, selection: DataSelectionCallback) -> str:
    """Fit the automatic indicator of a saved model on turns that it was trained on, and write it beside the weights.

    Nothing is held out of training for it, so that the run differs from a vanilla one by the indicator alone. What the
    model says of turns that it was trained on may be too good: the file and what is printed say so.

    Args:
        trainer: after training, its model saved in the output folder.
        arguments: of the run.
        selection: with the scores of the last selection.

    Returns:
        A line that says what was done, or why not.
    """
    if is_sharded(trainer.accelerator):
        return f"no {FILE}: FSDP or DeepSpeed shard the weights; fit it on the saved model with ctxaware auto fit"
    out, beta = Path(arguments.training.output_dir), arguments.of_indicator().threshold
    model, tokenizer = trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class
    method = PROBE if selection.encode.assistant_only_loss else SLOT
    layers = [usual_layer(model.config.get_text_config(decoder=True).num_hidden_layers)]
    was_training = model.training
    model.eval()
    try:
        scored, max_length = _drawn(selection, arguments.training.seed), selection.encode.max_length or 1 << 30
        turns = labelled_turns(tokenizer, scored, method, beta, max_length)
        indicator, quality = fit(
            model,
            tokenizer,
            turns,
            method=method,
            layers=layers,
            beta=beta,
            fingerprint=weights_fingerprint(str(out)),
            provenance={"data": str(arguments.run.data), "seen_in_training": True},
        )
    except InputError as error:
        return f"no {FILE}: {error}"
    finally:
        model.train(was_training)
    indicator.save(out)
    return (
        f"{out / FILE}: {method}, AUROC {quality.auroc:.3f}, calibration error {quality.reliability.error:.3f} on "
        f"{quality.n:,} turns that it was trained on; ctxaware auto fit calibrates it on others"
    )


def _drawn(selection: DataSelectionCallback, seed: int) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Some of the run's conversations with their scores, always the same."""
    table, scores = selection.table, selection.last_scores
    rows = np.sort(np.random.default_rng(seed).permutation(len(table.conversations))[:N_CONVERSATIONS])
    return [(table.conversations[int(row)], scores[table.first[row] : table.first[row + 1]]) for row in rows]
