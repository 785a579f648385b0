"""Results of ours in JSON, checked as they are read: what a report shows of them is there, or the file is named."""

from pathlib import Path
from typing import Any

from ctxaware.errors import InputError
from ctxaware.indicator.marking import AUTO, NEVER
from ctxaware.intervals import Interval
from ctxaware.runs.files import read_json
from ctxaware.runs.shapes import NUMBER, Maybe, check_shape

_INTERVAL = {"mean": NUMBER, "low": NUMBER, "high": NUMBER, "n": int}
_PROBES = {
    "questions": [{"task": str, "cluster": str}],
    "probes": [{"step": int, "scores": [NUMBER]}],
    "stopped": Maybe({"step": int, "task": str, "change": NUMBER, "max_drop": NUMBER}),
}
_STEERING = {
    "plan": {"model": str},
    "alpha": NUMBER,
    "curve": {str: _INTERVAL},
    "scores": {str: {str: _INTERVAL}},
    "differences": {str: {str: _INTERVAL}},
}
_HEADS = {
    "model": str,
    "n_prompts": int,
    "retrieval_heads": [{"layer_idx": int, "head_idx": int, "agreement": NUMBER}],
    "ranking": [{"layer_idx": int, "head_idx": int}],
}
_OPTIONAL = ("gain_of_always", "gain_of_auto", "identical_to_never_but_extraction")
_AUTO = {
    "configuration": {"model": str, "auto_indicator": {"method": str, "threshold": NUMBER, "beta": NUMBER}},
    "kinds": [
        {
            **{"kind": str, "n": int, "marked": _INTERVAL, "identical_to_never": _INTERVAL},
            **{"scores": Maybe({str: _INTERVAL}), "share_of_gain": Maybe(NUMBER)},
            **{
                key: Maybe(_INTERVAL) for key in ("gain_of_always", "gain_of_auto", "identical_to_never_but_extraction")
            },
        }
    ],
    "tokens": {mode: {"asked": int, "computed": int} for mode in (NEVER, AUTO)},
}
_SELECTION = {
    "instructions": int,
    "threshold": Maybe(NUMBER),
    "layer": Maybe(int),
    "share_above": {str: NUMBER},
    "scores": {"model": Maybe(str)},
}


def read_probes(path: Path) -> dict[str, Any]:
    """`watch.json`, which the probe of a training run wrote.

    Raises:
        InputError: it is damaged.
    """
    content = _read(path, _PROBES)
    n = len(content["questions"])
    for probe in content["probes"]:
        if len(probe["scores"]) != n or not all(0 <= score <= 1 for score in probe["scores"]):
            raise InputError(f"{path}: a probe needs {n} scores from 0 to 1, one for each question; restore it")
    return content


def read_steering(path: Path) -> dict[str, Any]:
    """`steer.json`, which `ctxaware steer` wrote.

    Raises:
        InputError: it is damaged.
    """
    content = _read(path, _STEERING)
    _check_keys(path, content["curve"])
    needles = [task for task in content["differences"] if task.startswith("nih_ctx")]
    if len(needles) != 1 or not {1.0, float(content["alpha"])} <= {float(alpha) for alpha in content["curve"]}:
        raise InputError(f"{path} must have one needle task, and recall by α with the chosen one and 1; restore it")
    return content


def read_heads(path: Path) -> dict[str, Any]:
    """What `ctxaware heads` wrote.

    Raises:
        InputError: it is damaged.
    """
    content = _read(path, _HEADS)
    if not content["retrieval_heads"]:
        raise InputError(f"{path} names no head; restore it")
    return content


def read_selection(path: Path) -> dict[str, Any]:
    """`statistics.json`, which `ctxaware select` wrote.

    Raises:
        InputError: it is damaged.
    """
    content = _read(path, _SELECTION)
    _check_keys(path, content["share_above"])
    return content


def read_auto(path: Path) -> dict[str, Any]:
    """`auto_evaluation.json`, which `ctxaware auto evaluate` wrote.

    Raises:
        InputError: it is damaged.
    """
    content = _read(path, _AUTO)
    if content["tokens"][NEVER]["computed"] < 1:
        raise InputError(f"{path} counts no tokens; restore it")
    return content


def interval_of(content: dict[str, Any]) -> Interval:
    """An interval as JSON holds it."""
    return Interval(content["mean"], content["low"], content["high"], content["n"])


def _read(path: Path, shape: Any) -> dict[str, Any]:
    content = read_json(path)
    check_shape(content, shape, str(path))
    return content


def _check_keys(path: Path, numbers: dict[str, Any]) -> None:
    """Keys that are numbers from 0 to 1: thresholds, or α."""
    for key in numbers:
        try:
            is_share = 0 <= float(key) <= 1
        except ValueError:
            is_share = False
        if not is_share:
            raise InputError(f"{path} has the key {key[:60]!r}, expected a number from 0 to 1; restore it")
