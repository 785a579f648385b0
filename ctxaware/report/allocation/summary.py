"""What `ctxaware attention` says: the shares of the retrieval head with intervals, and what the template changes."""

import math
from typing import Any

import numpy as np

from ctxaware.attention.heads import retrieval_heads
from ctxaware.attention.roles import GROUPS, SHARES, renormalised, user_mass
from ctxaware.intervals import Interval, t_interval
from ctxaware.report.allocation.prompts import CONDITIONS, INDICATOR, PLAIN, TEMPLATE
from ctxaware.report.allocation.table import ModelShares
from ctxaware.scores.formula import DEFAULT_LAYER

TITLES = {condition.name: condition.title for condition in CONDITIONS}
SHARE_TITLES = {
    "user": "user",
    "indicator": "[IND]",
    "assistant": "assistant (the response prefix)",
    "bos": "BOS (the first token)",
}
# the head that the protocol takes, and other choices, which show how much hangs on it
PLAIN_HEAD, TEMPLATE_HEAD = "head of the prompt without template", "head of the prompt with template"
OWN_HEAD, ALL_HEADS, FIRST_TOKEN = "each prompt's own head", "mean over all heads", "first token counted as the user's"


def summarise(models: list[ModelShares]) -> dict[str, dict[str, Any]]:
    """By model: `layer`, `n_prompts`, `allocation`, `left_out`, `changes`, `other_heads`, `by_layer`, `first_token`,
    `by_context_length`, `by_depth_percent`; shares are those that `renormalised` makes."""
    return {model.label: _summary(model) for model in models}


def headline_layer(layers: list[int]) -> int:
    """The layer of the table: 15 where it is measured (the protocol's), else the middle one."""
    return DEFAULT_LAYER if DEFAULT_LAYER in layers else layers[len(layers) // 2]


def pairs(model: ModelShares) -> list[tuple[str, str]]:
    """The conditions to compare, first less second."""
    differences = [(TEMPLATE, PLAIN), (INDICATOR, TEMPLATE), (INDICATOR, PLAIN)]
    return [(a.name, b.name) for a, b in differences if a.name in model.shares and b.name in model.shares]


def in_words(pair: str) -> str:
    """A key of `changes` as tables and pictures show it."""
    first, second = pair.split(" - ")
    return f"{TITLES[first]}, less {TITLES[second]}"


def head_shares(model: ModelShares, choice: str = PLAIN_HEAD) -> dict[str, np.ndarray]:
    """By condition, the shares of each layer's chosen head: float64 `[n_prompts, n_layers, n_shares]`."""
    shares = model.shares
    if choice == ALL_HEADS:
        return {name: renormalised(raw.mean(axis=2)) for name, raw in shares.items()}
    if choice == FIRST_TOKEN:
        owner = {name: "user" if name == PLAIN.name else "template" for name in shares}
        shares = {name: _first_token_to(raw, owner[name]) for name, raw in shares.items()}
    chosen = {name: retrieval_heads(user_mass(raw)) for name, raw in shares.items()}
    of = {TEMPLATE_HEAD: TEMPLATE.name, OWN_HEAD: None}.get(choice, PLAIN.name)
    return {
        name: renormalised(np.take_along_axis(raw, chosen[of or name][:, :, None, None], axis=2)[:, :, 0])
        for name, raw in shares.items()
    }


def _first_token_to(raw: np.ndarray, group: str) -> np.ndarray:
    """Shares with a first token that is no BOS counted in `group`."""
    raw, first = raw.copy(), GROUPS.index("first")
    raw[..., GROUPS.index(group)] += raw[..., first]
    raw[..., first] = 0
    return raw


def _summary(model: ModelShares) -> dict[str, Any]:
    layer = headline_layer(model.layers)
    at, compared, user = model.layers.index(layer), pairs(model), SHARES.index("user")
    shares = head_shares(model)
    first = {name: float(raw[:, at, :, GROUPS.index("first")].mean()) for name, raw in model.shares.items()}
    choices = [TEMPLATE_HEAD, OWN_HEAD, ALL_HEADS] if compared else []
    choices += [FIRST_TOKEN] if compared and first[PLAIN.name] else []
    return {
        "layer": layer,
        "n_prompts": len(model.depths),
        "allocation": {
            name: {share: t_interval(values[:, at, i]) for i, share in enumerate(SHARES)}
            for name, values in shares.items()
        },
        "left_out": {name: t_interval(_left_out(model, name, at)) for name in shares},
        "changes": {
            f"{a} - {b}": {share: t_interval((shares[a] - shares[b])[:, at, i]) for i, share in enumerate(SHARES)}
            for a, b in compared
        },
        "other_heads": {
            choice: {f"{a} - {b}": t_interval((other[a] - other[b])[:, at, user]) for a, b in compared}
            for choice, other in ((choice, head_shares(model, choice)) for choice in choices)
        },
        "by_layer": {
            layer_idx: {
                "user": {name: float(values[:, i, user].mean()) for name, values in shares.items()},
                "change": {f"{a} - {b}": t_interval((shares[a] - shares[b])[:, i, user]) for a, b in compared},
            }
            for i, layer_idx in enumerate(model.layers)
        },
        "first_token": first,
        "by_context_length": _by(model.context_lengths, {n: v[:, at, user] for n, v in shares.items()}),
        "by_depth_percent": _by(model.depths, {n: v[:, at, user] for n, v in shares.items()}),
    }


def _left_out(model: ModelShares, name: str, at: int) -> np.ndarray:
    """`[n_prompts]`: what the chosen head of layer number `at` puts on the template's own tokens."""
    heads = retrieval_heads(user_mass(model.shares[PLAIN.name]))[:, at]
    return model.shares[name][np.arange(len(heads)), at, heads, GROUPS.index("template")]


def _by(keys: np.ndarray, values: dict[str, np.ndarray]) -> dict[str, dict[float, Interval]]:
    return {
        name: {round(float(key), 1): t_interval(of[keys == key]) for key in np.unique(keys)}
        for name, of in values.items()
    }


def as_json(node: Any) -> Any:
    """Intervals as dictionaries all the way down; a bound that is not known (of a single value) is null."""
    if isinstance(node, Interval):
        bounds = {"low": node.low, "high": node.high}
        known = {key: None if math.isnan(bound) else bound for key, bound in bounds.items()}
        return {"mean": node.mean, **known, "n": node.n}
    return {key: as_json(value) for key, value in node.items()} if isinstance(node, dict) else node


def markdown(summary: dict[str, dict[str, Any]]) -> str:
    """The summary as tables, one or two a model."""
    return "\n\n".join(part for label, model in summary.items() for part in _model_markdown(label, model))


def _model_markdown(label: str, model: dict[str, Any]) -> list[str]:
    names, changes = list(model["allocation"]), model["changes"]
    columns = [*(TITLES[name] for name in names), *map(in_words, changes)]
    rows = [
        [title, *(model["allocation"][name][share] for name in names), *(of[share].signed for of in changes.values())]
        for share, title in SHARE_TITLES.items()
        if share != "indicator" or INDICATOR.name in names
    ]
    blank = [""] * len(changes)
    rows.append(["*the template's own, left out*", *(model["left_out"][name] for name in names), *blank])
    rows += [
        [f"user, {choice}", *("" for _ in names), *(of[pair].signed for pair in changes)]
        for choice, of in model["other_heads"].items()
    ]
    head = f"{label}: attention of layer {model['layer']}'s retrieval head ({PLAIN_HEAD}), {model['n_prompts']} prompts"
    parts = [f"{head}\n\n{_table(['attention on', *columns], rows)}"]
    if len(model["by_layer"]) > 1 and changes:
        rows = [
            [layer, *(f"{of['user'][name]:.3f}" for name in names), *(of["change"][pair].signed for pair in changes)]
            for layer, of in model["by_layer"].items()
        ]
        parts.append(f"{label}: the user's share, layer by layer\n\n{_table(['layer', *columns], rows)}")
    return parts


def _table(columns: list[str], rows: list[list]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
