"""Fitting a model's automatic indicator on turns with scores, and saying how good it is on turns that it did not see.

How good it is, is found by cross-validation over conversations: in each of `N_FOLDS` parts the probabilities come from
a probe and a calibration that were fitted on the others. What is saved is fitted on all of them.
"""

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ctxaware.auto.calibration import fit_calibration
from ctxaware.auto.fork import Fork, fork_messages
from ctxaware.auto.indicator import AutoIndicator, read_log_odds, read_states, template_sha256
from ctxaware.auto.methods import PROBE, Method, Probe, Slot
from ctxaware.auto.quality import Quality, at_threshold, quality
from ctxaware.chat import special_token_pattern
from ctxaware.errors import InputError
from ctxaware.indicator.token import INDICATOR
from ctxaware.runs.progress import Advance

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

N_FOLDS = 5
LEAST = 2 * N_FOLDS  # turns of each kind that are needed
Keep = Callable[[int, Callable[[], np.ndarray]], np.ndarray]  # as kept.Kept.__call__
STRENGTH = 0.001  # scikit-learn's C of the probe, on standardised hidden states
CHUNK = 64  # prompts that are read, and kept, together


@dataclass(frozen=True)
class Turns:
    """Turns as a fit needs them.

    Attributes:
        forks: the prompt of each turn.
        scores: float64 `[n]`, 0–1, each turn's context-dependency.
        conversations: int64 `[n]`, which one a turn is of.
        left_out: how many turns were not taken, by reason.
    """

    forks: list[Fork]
    scores: np.ndarray
    conversations: np.ndarray
    left_out: Counter = field(default_factory=Counter)

    def sha256(self) -> str:
        """What identifies the prompts, to the token."""
        digest = hashlib.sha256()
        for fork in self.forks:
            digest.update(repr(fork).encode())
        return digest.hexdigest()


def labelled_turns(
    tokenizer: "PreTrainedTokenizerBase",
    scored: Iterable[tuple[dict, np.ndarray]],
    method: str,
    beta: float,
    max_length: int,
) -> Turns:
    """The turns that have a score, as prompts.

    Earlier user messages carry `[IND]` where their score is above `beta`, as in training, if the tokenizer has it.

    Args:
        tokenizer: the model's.
        scored: conversations, and of each float `[n_turns]` scores, NaN without one.
        method: one of `METHODS`.
        beta: score above which a turn is context-dependent.
        max_length: tokens; a longer prompt is left out.
    """
    special, has_mark = special_token_pattern(tokenizer), INDICATOR in tokenizer.get_vocab()
    turns = Turns([], np.zeros(0), np.zeros(0, np.int64))
    values, groups = [], []
    for number, (conversation, scores) in enumerate(scored):
        ends = [i for i, message in enumerate(conversation["messages"]) if message["role"] == "user"]
        selected = [bool(score > beta) and has_mark for score in scores]  # of NaN: not
        for turn, (end, score) in enumerate(zip(ends, scores, strict=True)):
            if np.isnan(score):
                turns.left_out["without a score"] += 1
                continue
            try:
                messages = conversation["messages"][: end + 1]
                fork = fork_messages(tokenizer, messages, selected[:turn], special=special, needs_mark=method != PROBE)
            except InputError as error:
                turns.left_out[str(error)] += 1
                continue
            if len(fork.plain) > max_length:
                turns.left_out[f"of more than {max_length} tokens"] += 1
                continue
            turns.forks.append(fork)
            values.append(float(score))
            groups.append(number)
    return Turns(turns.forks, np.array(values), np.array(groups, np.int64), turns.left_out)


def fit(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    turns: Turns,
    *,
    method: str,
    layers: Sequence[int],
    beta: float,
    fingerprint: str,
    provenance: dict[str, Any],
    advance: Advance | None = None,
    keep: Keep | None = None,
) -> tuple[AutoIndicator, Quality]:
    """Fit a model's automatic indicator.

    The threshold is the one with the highest F1 on turns that were held out.

    Args:
        model, tokenizer: what it is for.
        turns: of conversations that were held out from its training, with the scores of `ctxaware score`.
        method: one of `METHODS`.
        layers: 0-based, of a probe.
        beta: score above which a turn is context-dependent.
        fingerprint: `weights_fingerprint` of the weights.
        provenance: what is noted beside the figures.
        advance: called with the number of prompts done, and of their tokens.
        keep: keeps what was read of each `CHUNK` of prompts, so that an interrupted fit need not read it again.

    Returns:
        The automatic indicator, and how good it is on turns that it was not fitted on.

    Raises:
        InputError: there are too few turns of one kind.
    """
    is_positive = turns.scores > beta
    folds = _folds(is_positive, turns.conversations, beta)
    fitted: Method
    if method == PROBE:
        states = _in_chunks(lambda forks: read_states(model, layers, forks, advance), turns.forks, keep)
        states = states.reshape(len(turns.forks), -1)
        log_odds = _held_out(states, is_positive, folds)
        fitted = Probe(tuple(layers), *_fit_probe(states, is_positive))
    else:
        fitted = slot = Slot()
        log_odds = _in_chunks(lambda forks: np.array(read_log_odds(model, slot, forks, advance)), turns.forks, keep)
    if not np.isfinite(log_odds).all():
        raise InputError(f"the {method} gives numbers that are not finite in {model.dtype}", "pass {dtype} float32")
    probabilities, parts = np.empty(len(log_odds)), np.zeros(len(log_odds), np.int64)
    for part, (rest, held_out) in enumerate(folds):
        probabilities[held_out] = fit_calibration(log_odds[rest], is_positive[rest])(log_odds[held_out])
        parts[held_out] = part
    fits = parts if method == PROBE else None  # the slot's log-odds are the model's own, whatever is calibrated on
    result = quality(log_odds, probabilities, is_positive, turns.conversations, fits)
    threshold = _best_threshold(probabilities, is_positive)
    chosen = at_threshold(probabilities, is_positive, threshold)
    indicator = AutoIndicator(
        fitted,
        fit_calibration(log_odds, is_positive),
        threshold,
        beta,
        fingerprint,
        template_sha256(tokenizer),
        {**provenance, "held_out": result.to_json(), "at_its_threshold": chosen._asdict()},
    )
    return indicator, result


def _in_chunks(read: Callable[[list[Fork]], np.ndarray], forks: list[Fork], keep: Keep | None) -> np.ndarray:
    """What `read` gives of the prompts, `CHUNK` by `CHUNK`, joined along the first axis."""
    chunks = [forks[first : first + CHUNK] for first in range(0, len(forks), CHUNK)]
    readers = [functools.partial(read, chunk) for chunk in chunks]
    return np.concatenate([keep(k, reader) if keep else reader() for k, reader in enumerate(readers)])


def _folds(is_positive: np.ndarray, conversations: np.ndarray, beta: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """By part, the indices of the others and its own; no conversation is in two parts."""
    from sklearn.model_selection import StratifiedGroupKFold

    n_positive = int(is_positive.sum())
    n_groups = min(len(np.unique(conversations[is_positive])), len(np.unique(conversations[~is_positive])))
    if min(n_positive, len(is_positive) - n_positive) < LEAST or n_groups < N_FOLDS:
        raise InputError(
            f"{n_positive} of {len(is_positive)} turns have a score above beta {beta:g}, in too few conversations; at "
            f"least {LEAST} of each kind, in {N_FOLDS} conversations, are needed",
            "pass more data, or another {beta}",
        )
    folds = StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=0)
    parts = list(folds.split(np.zeros(len(is_positive)), is_positive, conversations))
    if any(is_positive[rest].all() or not is_positive[rest].any() for rest, _ in parts):
        raise InputError("the turns of one kind are of too few conversations to hold some out; pass more data")
    return parts


def _fit_probe(states: np.ndarray, is_positive: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights float32 `[n_features]` and bias, on hidden states as they are (standardising is folded in)."""
    from sklearn.linear_model import LogisticRegression

    mean, scale = states.mean(axis=0, dtype=np.float64), states.std(axis=0, dtype=np.float64)
    scale[scale == 0] = 1
    fitted = LogisticRegression(C=STRENGTH, max_iter=2000).fit((states - mean) / scale, is_positive)
    weights = (fitted.coef_[0] / scale).astype(np.float32)
    return weights, float(fitted.intercept_[0] - weights.astype(np.float64) @ mean)


def _held_out(states: np.ndarray, is_positive: np.ndarray, folds: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """float64 `[n]`: each turn's log-odds by the probe that was fitted without its part."""
    log_odds = np.empty(len(states))
    for rest, held_out in folds:
        weights, bias = _fit_probe(states[rest], is_positive[rest])
        log_odds[held_out] = states[held_out].astype(np.float64) @ weights.astype(np.float64) + bias
    return log_odds


def _best_threshold(probabilities: np.ndarray, is_positive: np.ndarray) -> float:
    """The threshold with the highest F1, in the middle of the gap between the probabilities that it parts."""
    order = np.argsort(-probabilities, kind="stable")
    ranked, found = probabilities[order], np.cumsum(is_positive[order])
    n_marked = np.flatnonzero(np.diff(ranked)) + 1  # of each threshold between two values
    if not len(n_marked):
        return float(ranked[0])
    f1 = 2 * found[n_marked - 1] / (n_marked + is_positive.sum())
    best = int(n_marked[f1.argmax()])
    return float((ranked[best - 1] + ranked[best]) / 2)


def measure(
    indicator: AutoIndicator,
    model: "PreTrainedModel",
    turns: Turns,
    advance: Advance | None = None,
) -> Quality:
    """How good an automatic indicator is on turns that it was not fitted on, of other data most often.

    Raises:
        InputError: all turns are of one kind.
    """
    log_odds = np.array(read_log_odds(model, indicator.method, turns.forks, advance), dtype=np.float64)
    is_positive = turns.scores > indicator.beta
    return quality(log_odds, indicator.calibration(log_odds), is_positive, turns.conversations)
