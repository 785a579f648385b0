"""Early warning: every N steps, what the model in training makes of its context, on a small fixed probe.

    watch = ContextAwarenessCallback(probe_questions(tokenizer), every_n_steps=100)
    watch.attach(trainer)  # any trainer of transformers or TRL

The questions come from outside (`ctxaware.harness.probe` makes them of needles and passages that ship with the
package), so training needs no harness. They are answered by the model in training itself, greedily and in evaluation
mode: no second copy, no random number drawn, so the trained weights are those of a run without the callback.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from accelerate import PartialState
from transformers import TrainerCallback

from ctxaware.errors import InputError
from ctxaware.intervals import mean_interval
from ctxaware.models import window_of
from ctxaware.noninferiority import FAIL, p_values, verdict_of
from ctxaware.runs.files import read_json, write_json
from ctxaware.runs.processes import is_sharded, on_main
from ctxaware.training.checkpoints import WATCH

DEFAULT_EVERY_N_STEPS = 100
BATCH_TOKENS = 8192  # prompt tokens, padding included, answered at a time


class Question(Protocol):
    """What the probe asks, as `ctxaware.harness.probe.ProbeQuestion` has it."""

    task: str
    cluster: str
    input_ids: Sequence[int]
    generation: Mapping[str, Any]

    def score(self, response: str) -> float:
        """0–1."""


class ContextAwarenessCallback(TrainerCallback):
    """Asks the probe before the first step, every N steps and after the last one.

    Scores with 95% intervals go to the trackers (`report_to`) as `context/TASK`, `context/TASK_low` and `…_high`, with
    the probe's share of the time so far as `context/share_of_time`. Each question's score goes to `watch.json` in the
    output folder, which a run that is taken up continues.

    Args:
        questions: the probe.
        every_n_steps: optimizer steps from one probe to the next.
        stop_when_fails: end training where a drop of more than `max_drop` since the first probe is shown, for any task.
        max_drop: of a task's score, 0–1.
        confidence: that a run without such a drop is not stopped, over all its probes and tasks.

    Raises:
        InputError: a setting is outside its range, or there are no questions.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        every_n_steps: int = DEFAULT_EVERY_N_STEPS,
        stop_when_fails: bool = False,
        max_drop: float = 0.02,
        confidence: float = 0.95,
    ) -> None:
        if every_n_steps < 1:
            raise InputError(f"every_n_steps must be at least 1, got {every_n_steps}")
        if not 0 <= max_drop < 1 or not 0.5 <= confidence < 1:
            raise InputError(f"max_drop must be in 0–1 and confidence in 0.5–1, got {max_drop:g} and {confidence:g}")
        if not questions:
            raise InputError("the probe has no questions; make some with ctxaware.probe_questions(tokenizer)")
        self.questions, self.every_n_steps = list(questions), every_n_steps
        self.stop_when_fails, self.max_drop, self.confidence = stop_when_fails, max_drop, confidence
        self.trainer: Any = None
        self.probes: list[dict] = []  # step, and scores in the questions' order
        self.stopped: dict | None = None

    def attach(self, trainer: Any) -> None:
        """Put the callback into a trainer.

        Raises:
            InputError: no process holds the whole model, or its window is shorter than a question.
        """
        if is_sharded(trainer.accelerator):
            raise InputError(
                "the probe needs a whole model in each process, and FSDP or DeepSpeed shard it; train without the "
                "probe (watch_every 0) and evaluate checkpoints with lm_eval"
            )
        window = window_of(trainer.model.config)
        longest = max(len(q.input_ids) + q.generation["max_new_tokens"] for q in self.questions)
        if window and longest > window:
            raise InputError(
                f"the probe's longest question has {longest} tokens with its answer, the model's window {window}; "
                "pass a smaller max_context_length to probe_questions"
            )
        self.trainer = trainer
        trainer.add_callback(self)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer is None:
            raise InputError("add the probe with watch.attach(trainer), not with callbacks=[…]: it logs by the trainer")
        self._started, self._asking = time.perf_counter(), 0.0  # seconds
        self.probes = on_main(PartialState(), lambda: self._stored(state.global_step)) if state.global_step else []
        if not self.probes:
            self._ask(args, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every_n_steps == 0 or state.global_step == state.max_steps:
            self._ask(args, state, control)

    def _ask(self, args: Any, state: Any, control: Any) -> None:
        """Ask, log and write the probe, and stop the run where it fails."""
        started = time.perf_counter()
        model, accelerator = self.trainer.accelerator.unwrap_model(self.trainer.model), self.trainer.accelerator
        due = control.should_log  # logging below takes it back, and the loss of this step would not be logged
        with _evaluation_mode(model):
            with accelerator.autocast():
                scores = self._scores(model)
            self.probes.append({"step": state.global_step, "scores": scores})
            self._asking += time.perf_counter() - started
            share = self._asking / (time.perf_counter() - self._started)
            # in evaluation mode, so that TRL leaves its averages of training alone
            self.trainer.log(self._summary(scores) | ({"context/share_of_time": share} if state.global_step else {}))
        control.should_log = due
        if self.stop_when_fails and len(self.probes) > 1 and (failed := self._failed(state)):
            self.stopped = {"step": state.global_step, **failed}
            control.should_training_stop = True
            if state.is_world_process_zero:
                print(
                    f"stopped at step {state.global_step}: {failed['task']} changed by {failed['change']:+.3f} since "
                    f"the first probe, a drop over {self.max_drop:g} is shown",
                    flush=True,
                )
        on_main(PartialState(), lambda: self._write(args))

    def _scores(self, model: Any) -> list[float]:
        """Each question's score, in order; every process answers its share."""
        from accelerate.utils import gather_object

        state, tokenizer = PartialState(), self.trainer.processing_class
        by_length = sorted(range(len(self.questions)), key=lambda i: (len(self.questions[i].input_ids), i))
        mine = by_length[state.process_index :: state.num_processes]
        answers = answer(model, tokenizer, [self.questions[i] for i in mine])
        scored = [(i, self.questions[i].score(text)) for i, text in zip(mine, answers, strict=True)]
        return [score for _, score in sorted(gather_object(scored))]

    def _tasks(self) -> dict[str, list[int]]:
        """Positions of each task's questions."""
        tasks: dict[str, list[int]] = {}
        for i, question in enumerate(self.questions):
            tasks.setdefault(question.task, []).append(i)
        return tasks

    def _summary(self, scores: Sequence[float]) -> dict[str, float]:
        entries: dict[str, float] = {}
        for task, rows in self._tasks().items():
            interval = mean_interval([scores[i] for i in rows], [self.questions[i].cluster for i in rows])
            entries |= {f"context/{task}": interval.mean}
            entries |= {f"context/{task}_low": interval.low, f"context/{task}_high": interval.high}
        return entries

    def _failed(self, state: Any) -> dict | None:
        """The task, or their mean, that fails by the gate's rule against the first probe; None where none does.

        The chance of a false alarm is shared out among the run's probes (Bonferroni), as the rule does among tasks.
        """
        tasks, n_probes = self._tasks(), -(-state.max_steps // self.every_n_steps)
        first, last = self.probes[0]["scores"], self.probes[-1]["scores"]
        differences = [[last[i] - first[i] for i in rows] for rows in tasks.values()]
        clusters = [[self.questions[i].cluster for i in rows] for rows in tasks.values()]
        changes = [float(np.mean(of)) for of in differences]
        subjects = [*zip(tasks, changes, strict=True), ("mean of tasks", float(np.mean(changes)))]
        p_fail, p_pass = p_values(differences, clusters, self.max_drop)
        alpha = (1 - self.confidence) / n_probes
        for (task, change), fails, passes in zip(subjects, p_fail, p_pass, strict=False):  # one task has no mean beside
            if verdict_of(fails, passes, alpha) == FAIL:
                return {"task": task, "change": change, "max_drop": self.max_drop}
        return None

    def _digest(self) -> str:
        asked = [[q.task, q.cluster, list(q.input_ids), dict(q.generation)] for q in self.questions]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def _stored(self, step: int) -> list[dict]:
        """The probes of the run that is taken up at `step`.

        Raises:
            InputError: they are of other questions.
        """
        path = Path(self.trainer.args.output_dir) / WATCH
        if not path.is_file():
            return []
        stored = read_json(path)
        if stored.get("questions_sha256") != self._digest():
            raise InputError(f"{path} holds answers to other questions; ask the same ones, or move it away")
        try:
            return [probe for probe in stored["probes"] if probe["step"] <= step]
        except (KeyError, TypeError) as error:
            raise InputError(f"{path} holds no probes ({error!r}); restore it, or move it away") from error

    def _write(self, args: Any) -> None:
        content = {
            "every_n_steps": self.every_n_steps,
            "questions_sha256": self._digest(),
            "questions": [{"task": q.task, "cluster": q.cluster} for q in self.questions],
            "probes": self.probes,
            "stopped": self.stopped,
        }
        write_json(Path(args.output_dir) / WATCH, content)


def answer(model: Any, tokenizer: Any, questions: Sequence[Question]) -> list[str]:
    """The model's answers, in the questions' order.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: of the model.
        questions: with `input_ids` and `generation`; those of equal `generation` and similar length go together.
    """
    import torch

    stops = {tokenizer.eos_token_id, *_as_list(model.generation_config.eos_token_id)} - {None}
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    answers: dict[int, str] = {}
    for batch in _batches(questions):
        width = max(len(questions[i].input_ids) for i in batch)
        ids = torch.full((len(batch), width), padding)  # [n, width], padded on the left
        mask = torch.zeros_like(ids)
        for row, i in enumerate(batch):
            n = len(questions[i].input_ids)
            ids[row, width - n :], mask[row, width - n :] = torch.tensor(questions[i].input_ids), 1
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            tokenizer=tokenizer,
            eos_token_id=sorted(stops),
            pad_token_id=padding,
            use_cache=True,  # a trainer with gradient checkpointing switches it off in the model's configuration
            **_asked(questions[batch[0]].generation, model),
        )
        texts = tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
        answers |= dict(zip(batch, texts, strict=True))
    return [answers[i] for i in range(len(questions))]


def _asked(generation: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """`generation` without what is off anyway: transformers warns of some pairs of settings that are both off."""
    return {key: value for key, value in generation.items() if value or getattr(model.generation_config, key, None)}


def _as_list(value: Any) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def _batches(questions: Sequence[Question]) -> Iterator[list[int]]:
    """Positions of questions that are answered together."""
    order = sorted(range(len(questions)), key=lambda i: (str(questions[i].generation), len(questions[i].input_ids), i))
    batch: list[int] = []
    for i in order:
        same = batch and questions[batch[0]].generation == questions[i].generation
        if batch and not (same and (len(batch) + 1) * len(questions[i].input_ids) <= BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@contextlib.contextmanager
def _evaluation_mode(model: Any) -> Iterator[None]:
    """`model` in evaluation mode; each module is then as it was."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        # on the CPU a 4-bit layer in evaluation mode packs its weights anew, and can't undo that exactly
        module.training = hasattr(getattr(module, "weight", None), "quant_state")
    try:
        yield
    finally:
        for module in training:
            module.training = True
