"""A model's automatic indicator: `auto_indicator.json` beside its weights, and the decisions that it makes."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ctxaware.auto.calibration import Calibration
from ctxaware.auto.fork import Fork, earlier_marks, fork_messages
from ctxaware.auto.in_memory import check_in_memory
from ctxaware.auto.methods import METHODS, PROBE, Head, Method, Probe, Slot, look
from ctxaware.auto.weights import weights_fingerprint
from ctxaware.errors import InputError
from ctxaware.indicator.marking import mark_messages
from ctxaware.indicator.token import indicator_id
from ctxaware.models import file_of
from ctxaware.prefix_cache import Prompt
from ctxaware.runs.files import output_file, write_json
from ctxaware.runs.progress import Advance
from ctxaware.runs.shapes import NUMBER, Maybe, check_shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger("ctxaware.auto")

FILE, WEIGHTS = "auto_indicator.json", "auto_indicator.safetensors"


_SHAPE = {
    **{"method": str, "layers": [int], "threshold": NUMBER, "beta": NUMBER, "model": str, "calibration": dict},
    **{"chat_template_sha256": str, "fitted": {"held_out": Maybe({"auroc_interval": Maybe([NUMBER])})}},
}


class Decision(NamedTuple):
    """What was decided of a prompt.

    Attributes:
        messages: as they should be sent.
        probability: that the last user message needs its context, 0–1.
        is_marked: whether it carries `[IND]`.
    """

    messages: list[dict]
    probability: float
    is_marked: bool


@dataclass(frozen=True)
class AutoIndicator:
    """What decides whether a prompt gets `[IND]`.

    Attributes:
        method: slot or probe.
        calibration: from log-odds to probabilities.
        threshold: `[IND]` where the probability is above it, 0–1.
        beta: the score above which a turn counted as context-dependent when it was fitted.
        model: the fingerprint of the weights that it belongs to.
        chat_template_sha256: of the chat template that it was fitted with.
        fitted: on what, and how well: figures for people.
    """

    method: Method
    calibration: Calibration
    threshold: float
    beta: float
    model: str
    chat_template_sha256: str
    fitted: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> Path:
        """Write it into a folder: JSON, and a probe's weights as safetensors. Returns the JSON file's path."""
        value = {
            "method": self.method.name,
            "layers": list(self.method.layers),
            "beta": self.beta,
            "threshold": self.threshold,
            "calibration": self.calibration.to_json(),
            "model": self.model,
            "chat_template_sha256": self.chat_template_sha256,
            "fitted": self.fitted,
        }
        if isinstance(self.method, Probe):
            from safetensors.numpy import save_file

            weights = {"weights": self.method.weights, "bias": np.array([self.method.bias], dtype=np.float64)}
            with output_file(folder / WEIGHTS) as beside:
                save_file(weights, beside)
            value["weights_sha256"] = _sha256(folder / WEIGHTS)
        else:
            (folder / WEIGHTS).unlink(missing_ok=True)
        write_json(folder / FILE, value)
        return folder / FILE

    def describe(self) -> dict[str, Any]:
        """What a result that it had a part in should say of it."""
        return {"method": self.method.name, "threshold": self.threshold, "beta": self.beta, "of": self.model}

    @property
    def tells_apart(self) -> bool:
        """Whether the turns it was judged on show that it is better than chance; True where it says nothing of any."""
        interval = self.fitted.get("held_out", {}).get("auroc_interval")
        return not interval or interval[0] > 0.5

    def check_tokenizer(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Check that prompts are written as when it was fitted.

        Raises:
            InputError: with another chat template, or a slot without `[IND]`.
        """
        if template_sha256(tokenizer) != self.chat_template_sha256:
            raise InputError(
                f"the automatic indicator was fitted with another chat template than that of tokenizer "
                f"{tokenizer.name_or_path!r}; pass the tokenizer that was saved with the model, or fit it again"
            )
        if self.method.needs_mark:
            indicator_id(tokenizer)

    def with_threshold(self, threshold: float | None) -> "AutoIndicator":
        """The same with another threshold; None leaves it.

        Raises:
            InputError: it is outside 0–1.
        """
        if threshold is None:
            return self
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
            raise InputError(f"indicator_threshold must be in 0–1, as probabilities are, got {threshold!r}")
        return replace(self, threshold=float(threshold))

    def probability(self, log_odds: float) -> float:
        """Of a prompt by its log-odds, 0–1."""
        return float(self.calibration([log_odds])[0])

    def is_marked(self, probability: float) -> bool:
        """Whether a prompt of this probability gets `[IND]`."""
        return probability > self.threshold

    def decide(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        prompts: Sequence[Sequence[dict]],
        advance: Advance | None = None,
    ) -> list[Decision]:
        """Decide the last user message of each prompt.

        Earlier user messages keep the mark that an earlier call put at their end; `[IND]` typed elsewhere is made
        ordinary text.

        Args:
            model, tokenizer: those that it was fitted on.
            prompts: messages each, the last one the user's.
            advance: called with the number of prompts that have just been done, and of tokens.

        Raises:
            InputError: messages are no prompt, or it does not fit this tokenizer.
        """
        self.check_tokenizer(tokenizer)
        asked = [earlier_marks(messages) for messages in prompts]
        forks = [fork_messages(tokenizer, *each, needs_mark=self.method.needs_mark) for each in asked]
        decisions = []
        for each, odds in zip(asked, read_log_odds(model, self.method, forks, advance), strict=True):
            p = self.probability(odds)
            if self.is_marked(p):
                indicator_id(tokenizer)
            messages, selected = each
            decisions.append(Decision(mark_messages(messages, [*selected, self.is_marked(p)]), p, self.is_marked(p)))
        return decisions


def read_log_odds(
    model: "PreTrainedModel", method: Method, forks: Sequence[Fork], advance: Advance | None = None
) -> list[float]:
    """The log-odds of each prompt, in their order, before calibration."""
    heads = [(i, head) for i, fork in enumerate(forks) for head in method.heads(fork)]

    def by_prompt(steps: float, n_counted: int = 0) -> None:  # some prompts have two heads
        if advance:
            advance(steps * len(forks) / len(heads), n_counted)

    parts = look(model, [head for _, head in heads], method.layers, method.log_odds, by_prompt)
    sums = [0.0] * len(forks)
    for (i, _), part in zip(heads, parts, strict=True):
        sums[i] += part
    return sums


def read_states(
    model: "PreTrainedModel", layers: Sequence[int], forks: Sequence[Fork], advance: Advance | None = None
) -> np.ndarray:
    """float32 `[n_prompts, n_layers, hidden_size]`: the hidden states that a probe at these layers looks at."""
    heads = [Head(Prompt(fork.plain)) for fork in forks]
    states = look(model, heads, layers, lambda _, seen: seen.hidden, advance)
    return np.stack(states).reshape(len(forks), len(layers), -1)


def template_sha256(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Of the chat template's text."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()


def load_auto_indicator(
    name: str, revision: str | None = None, base: str | None = None, base_revision: str | None = None
) -> AutoIndicator:
    """The automatic indicator beside a model's weights, checked to be theirs.

    Args:
        name: folder or hub name of the model or the adapter.
        revision: branch, tag or commit.
        base, base_revision: of an adapter, what it is put on; None for the one that it names.

    Raises:
        InputError: there is none, it is damaged, or it is of other weights.
    """
    if (file := file_of(name, FILE, revision)) is None:
        raise InputError(f"{name} has no {FILE}; make it with ctxaware auto fit")
    indicator = _read(Path(file), file_of(name, WEIGHTS, revision))
    if (found := weights_fingerprint(name, revision, base, base_revision)) != indicator.model:
        raise InputError(
            f"{FILE} of {name} is of other weights ({indicator.model}, these are {found}); fit it again on this model"
        )
    if not indicator.tells_apart:
        text = "%s of %s does not tell prompts that need their context from others: its AUROC may be 0.5 or less"
        logger.warning(text, FILE, name)
    return indicator


def _read(path: Path, weights: str | None) -> AutoIndicator:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        check_shape(value, _SHAPE, "its content")
        if not 0 <= value["threshold"] <= 1 or not 0 <= value["beta"] <= 1:
            raise ValueError("threshold and beta must be in 0–1")
        layers = tuple(map(int, value["layers"]))
        if value["method"] not in METHODS:
            raise ValueError(f"method {value['method']!r}")
        method: Method = Slot()
        if value["method"] == PROBE:
            from safetensors.numpy import load_file

            if weights is None or _sha256(Path(weights)) != value["weights_sha256"]:
                raise ValueError(f"{WEIGHTS} beside it is not the one it was written with")
            tensors = load_file(weights)
            method = Probe(layers, tensors["weights"], float(tensors["bias"][0]))
        return AutoIndicator(
            method,
            Calibration.from_json(value["calibration"]),
            float(value["threshold"]),
            float(value["beta"]),
            str(value["model"]),
            str(value["chat_template_sha256"]),
            dict(value["fitted"]),
        )
    except Exception as error:  # safetensors has errors of its own
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}); fit it again") from error


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def beside(model: Any, tokenizer: Any) -> AutoIndicator:
    """The automatic indicator in the folder that the tokenizer or the model was loaded from.

    Raises:
        InputError: there is none, or it is of other weights: than those in the folder, or than the model's.
    """
    names = dict.fromkeys(str(name) for name in (tokenizer.name_or_path, getattr(model, "name_or_path", "")) if name)
    for name in names:
        if file_of(name, FILE, None):
            indicator = load_auto_indicator(name)
            check_in_memory(model, name)
            return indicator
    raise InputError(
        f"no {FILE} beside {' or '.join(names) or 'this model'}; make it with ctxaware auto fit, or pass the one of "
        "ctxaware.load_auto_indicator"
    )
