"""Data selection while training: which instructions carry `[IND]` is decided by a callback.

Conversations are tokenised once without marks. A table in shared memory says which turns are selected; the collator
looks at it when it builds a batch, and tokenises anew, with its marks, a conversation that has a selected turn. So a
worker process sees a new selection at once, and with nothing selected the batches are those of vanilla training.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTTrainer

from ctxaware.chat import n_instructions
from ctxaware.errors import InputError
from ctxaware.runs.files import output_file
from ctxaware.runs.processes import is_sharded, on_main
from ctxaware.runs.progress import progress_bar
from ctxaware.scores.formula import DEFAULT_BATCH_TOKENS, score_conversations
from ctxaware.scores.threshold import above_threshold, describe_extreme
from ctxaware.training.arguments import Arguments
from ctxaware.training.encoding import Encoder, TurnTable
from ctxaware.training.turn_scores import find_scores

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
FOLDER = "selection"  # in the output folder, beside the checkpoints
STATIC = "static"  # the file's name of a selection that holds for the whole run


class MarkingCollator:
    """A collator around another, which gives it the conversations with their marks.

    Examples have `input_ids` and `labels` without marks, and `row`, the conversation's place in the table.
    """

    def __init__(self, inner: Callable[[list[dict]], dict], table: TurnTable, encode: Encoder) -> None:
        self.inner, self.table, self.encode = inner, table, encode

    def __call__(self, examples: list[dict]) -> dict:
        return self.inner([self._marked(example) for example in examples])

    def _marked(self, example: dict) -> dict:
        selected = self.table.of(example["row"])
        if not any(selected):
            return example
        return self.encode(self.table.conversations[example["row"]]["messages"], selected)


class DataSelectionCallback(TrainerCallback):
    """Fills the table at the start of training (static), or at each epoch with the model in training.

    The ratio selected and quantiles of the scores go to the trackers (`report_to`); each selection is written to
    `selection/` in the output folder, and an epoch that was selected before an interruption is read from there.

    Args:
        conversations: a `datasets.Dataset` with `id` and `messages`, whose rows the examples' `row` counts.
        encode: as used for the training set.
        threshold: select scores above it.
        scores: float `[n_turns]`, NaN without a score: for the whole run, or its first epoch where `rescore_layer`
            is given. None scores the first epoch as well.
        rescore_layer: 0-based layer at which the model in training scores anew at each epoch; None for a static
            selection.

    Raises:
        InputError: the number of scores is not the number of turns, or there are none and nothing to score with.
    """

    def __init__(
        self,
        conversations: Dataset,
        encode: Encoder,
        threshold: float,
        scores: np.ndarray | None,
        rescore_layer: int | None = None,
    ) -> None:
        self.table, self.encode, self.threshold = TurnTable(conversations), encode, threshold
        self.scores, self.rescore_layer = scores, rescore_layer
        self.trainer: Any = None  # of `attach`
        self.last_scores = np.zeros(0)  # of the selection that is in the table
        if scores is None and rescore_layer is None:
            raise InputError("data selection needs scores", "pass {scores}, {seed_model} or {rescore_each_epoch} true")
        if scores is not None and len(scores) != len(self.table):
            raise InputError(f"expected {len(self.table)} scores, one a turn, got {len(scores)}; score this very data")
        if scores is not None:
            self._fill(scores)

    def attach(self, trainer: SFTTrainer) -> None:
        """Put callback and collator into a trainer.

        Under packing a batch has no conversations left to mark: its training set has to be marked beforehand with
        this callback's table, which then only logs and writes the selection.

        Raises:
            InputError: the trainer drops the column `row`, or scores are asked of a model that can't give them.
        """
        self.trainer = trainer
        trainer.add_callback(self)
        if trainer.args.packing:
            if self.rescore_layer is not None:
                raise InputError("packing fixes the marks beforehand", "leave out {rescore_each_epoch} or {packing}")
            return
        if trainer.args.remove_unused_columns:
            raise InputError("remove_unused_columns must be false: the collator needs the column row")
        if self.rescore_layer is not None and is_sharded(trainer.accelerator):
            raise InputError(
                "scoring with the model in training is not possible where FSDP or DeepSpeed shard its weights",
                "pass {rescore_each_epoch} false with {scores} or {seed_model}",
            )
        trainer.data_collator = MarkingCollator(trainer.data_collator, self.table, self.encode)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.rescore_layer is None and self.scores is not None:
            self._select(STATIC, self.scores)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.rescore_layer is None:
            return
        epoch = int(state.epoch or 0)  # of a run taken up in mid-epoch, the one it is in
        name = f"epoch-{epoch}"
        if on_main(PartialState(), self._path(name).is_file):
            scores = read_selection(self._path(name))
        elif epoch == 0 and self.scores is not None:
            scores = self.scores
        else:
            scores = self._score(epoch, self.rescore_layer)
        self._select(name, scores)

    def _fill(self, scores: np.ndarray) -> np.ndarray:
        selected, self.last_scores = above_threshold(scores, self.threshold), scores
        self.table.selected.copy_(torch.from_numpy(selected))
        return selected

    def _path(self, name: str) -> Path:
        return Path(self.trainer.args.output_dir) / FOLDER / f"{name}.parquet"

    def _select(self, name: str, scores: np.ndarray) -> None:
        selected = self._fill(scores)
        self._check_same_everywhere()
        if self.trainer.is_world_process_zero() and not self._path(name).is_file():
            self._write(self._path(name), scores, selected)
        known = scores[~np.isnan(scores)]
        logs = {"selection/ratio": float(selected.mean()), "selection/without_score": len(scores) - len(known)}
        logs |= {f"selection/score_q{q:g}": float(np.quantile(known, q)) for q in QUANTILES if len(known)}
        self.trainer.log(logs)
        if self.trainer.is_world_process_zero() and (extreme := describe_extreme(scores, selected)):
            print(f"warning: {name}: {extreme}", flush=True)

    def _score(self, epoch: int, layer_idx: int) -> np.ndarray:
        """float64 `[n_turns]`: scores by the model in training; each process does its share."""
        from accelerate.utils import gather_object

        accelerator, conversations = self.trainer.accelerator, self.table.conversations
        rows = range(accelerator.process_index, len(conversations), accelerator.num_processes)
        shown = accelerator.is_main_process
        with progress_bar(f"scoring, epoch {epoch}", len(rows), "tokens", shown) as advance, accelerator.autocast():
            scored = score_conversations(
                accelerator.unwrap_model(self.trainer.model),
                self.encode.tokenizer,
                (conversations[row] for row in rows),
                layers=[layer_idx],
                max_length=self.encode.max_length,
                batch_tokens=DEFAULT_BATCH_TOKENS,
                on_batch=advance,
            )
        turns = [(turn.conversation_id, turn.turn, turn.score) for turn in scored.turns]
        by_turn = {(name, turn): score for name, turn, score in gather_object(turns)}
        keys = ((row["id"], turn) for row in conversations for turn in range(n_instructions(row["messages"])))
        return np.array([by_turn[key] for key in keys], dtype=np.float64)  # None becomes NaN

    def _check_same_everywhere(self) -> None:
        from accelerate.utils import gather_object

        digests = gather_object([hashlib.sha256(self.table.selected.numpy().tobytes()).hexdigest()])
        if len(set(digests)) > 1:
            raise InputError("the processes made different selections; do they all see the same scores file?")

    def _write(self, path: Path, scores: np.ndarray, selected: np.ndarray) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        names: list[str] = []
        turns: list[int] = []
        for row in self.table.conversations:
            n = n_instructions(row["messages"])
            names += [row["id"]] * n
            turns += range(n)
        columns = {"conversation_id": names, "turn": turns, "score": pa.array(scores, from_pandas=True)}
        with output_file(path) as beside:
            pq.write_table(pa.table(columns | {"selected": selected}), beside, write_page_checksum=True)


def read_selection(path: Path) -> np.ndarray:
    """float64 `[n_turns]`: the scores of a selection that a run wrote, NaN without one.

    Raises:
        InputError: the file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["score"], page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path} is damaged ({error}); restore it, or remove it: its epoch is then scored by the model as it is now"
        ) from error
    return table["score"].to_numpy().astype(np.float64)


def data_selection(arguments: Arguments, conversations: Dataset, encode: Encoder) -> DataSelectionCallback:
    """The callback that decides which instructions carry `[IND]`, with its scores.

    Raises:
        InputError: no instruction would carry it, or all would.
    """
    indicator = arguments.of_indicator()
    scores, layer = find_scores(arguments)
    rescore = layer if indicator.rescore_each_epoch else None
    callback = DataSelectionCallback(conversations, encode, indicator.threshold, scores, rescore)
    if scores is not None and (extreme := describe_extreme(scores, callback.table.selected.numpy())):
        raise InputError(f"with threshold {indicator.threshold:g} {extreme}", "pass another {threshold}")
    return callback
