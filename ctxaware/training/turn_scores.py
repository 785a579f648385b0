"""The scores of a training run: from a file of `ctxaware score`, or by a seed model on the spot."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from ctxaware.errors import InputError
from ctxaware.models import load_config, window_of
from ctxaware.runs.processes import whole_models
from ctxaware.scores.formula import DEFAULT_BATCH_TOKENS, DEFAULT_LAYER, DEFAULT_MAX_LENGTH
from ctxaware.training.arguments import Arguments
from ctxaware.training.checkpoints import DATA, SCORES

Result = TypeVar("Result")


def find_scores(arguments: Arguments) -> tuple[np.ndarray | None, int]:
    """The scores, and the layer that made them or will, where the model in training scores.

    With a seed model the conversations are scored by all processes, into `scores.parquet` of the output folder, up to
    the length of training or of the seed model's window, whichever is shorter.

    Returns:
        float64 `[n_turns]` in the order of the run's conversations, NaN without a score, None where no scores are
        given; and the 0-based layer.

    Raises:
        InputError: the scores are of other data, or the layer is none of theirs or the model's.
    """
    from ctxaware.scores.table import aligned, read_one_layer

    indicator, out = arguments.of_indicator(), Path(arguments.training.output_dir)
    default = DEFAULT_LAYER if indicator.score_layer is None else indicator.score_layer
    if indicator.seed_model:
        path = out / SCORES
        _score(arguments, indicator.seed_model, path, default)
        layer, scores = _with_recipe_names(lambda: read_one_layer(path, default))
    elif indicator.scores:
        path = Path(indicator.scores)
        layer, scores = _with_recipe_names(lambda: read_one_layer(path, indicator.score_layer))
    else:
        return None, default
    return np.concatenate([scores.values[turns] for _, turns in aligned(out / DATA, scores)]), layer


def _score(arguments: Arguments, seed_model: str, path: Path, layer: int) -> None:
    from ctxaware.scores.run import ScoreRun, score_file

    training = arguments.training
    window = window_of(load_config(seed_model))
    length = min((n for n in (training.max_length, window) if n), default=DEFAULT_MAX_LENGTH)
    run = ScoreRun(
        data=path.parent / DATA,
        model=seed_model,
        out=path,
        layer=str(layer),
        max_length=length,
        batch_tokens=DEFAULT_BATCH_TOKENS,
        device="cpu" if training.use_cpu else None,
    )
    with whole_models(training.deepspeed_plugin):
        _with_recipe_names(lambda: score_file(run))


def _with_recipe_names(work: Callable[[], Result]) -> Result:
    """The result of `work`, whose remedy names the recipe's setting in place of the scorer's."""
    try:
        return work()
    except InputError as error:
        raise InputError(error.message, error.remedy.replace("{layer}", "{score_layer}")) from error
