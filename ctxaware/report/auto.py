"""What an automatic indicator does: five kinds of prompts, with `[IND]` never, always and where the model says so.

The answers of each kind and way of marking stand in a file of their own, so that an interrupted run goes on.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ctxaware.harness.auto_prompts import EXTRACTION, KINDS, MT_BENCH, NEEDLES, READING, AutoPrompt, auto_prompts
from ctxaware.harness.settings import NeedleSettings
from ctxaware.harness.window import NEUTRAL_GENERATION
from ctxaware.indicator.marking import ALWAYS, AUTO, MODES, NEVER
from ctxaware.intervals import DIFFERENCE, Difference, Interval, mean_interval
from ctxaware.report.collect import AUTO as FILE
from ctxaware.report.evaluation import check_batch_size, refuse_own_arguments
from ctxaware.report.tables import Cell, Table
from ctxaware.runs.claim import RUN, claim, locked, refuse_foreign_folder
from ctxaware.runs.files import output_file, write_json, write_text
from ctxaware.runs.progress import progress_bar
from ctxaware.runs.secrets import redacted
from ctxaware.runs.shapes import NUMBER, Maybe, check_shape

NEEDED = (NEEDLES, READING)  # kinds whose answer stands in the context
_NEUTRAL = {key: value for key, value in NEUTRAL_GENERATION.items() if key != "min_length"}  # beside min_new_tokens
_ANSWER = {"cluster": str, "category": str, "answer": str, "score": Maybe(NUMBER)}
_COST = {"tokens": {"asked": int, "computed": int}}
MARKDOWN = "auto_evaluation.md"
MIN_GAIN = 0.05  # of always over never, under which its share is not a figure worth telling


@dataclass(frozen=True)
class AutoRun:
    """What `ctxaware auto evaluate` was asked to do.

    Attributes:
        model: hub name or folder of a model with an automatic indicator.
        out: the folder to write.
        model_args: further arguments of `--model ctxaware` (peft, tokenizer, dtype, indicator_threshold, …).
        needles: settings of the needle prompts.
        source: of the reading questions.
        questions: MT-Bench's `question.jsonl`, or None.
        limit: reading questions.
        max_new_tokens: of an answer to MT-Bench.
        batch_size, device: as `lm_eval` takes them.
    """

    model: str
    out: Path
    model_args: dict[str, Any]
    needles: NeedleSettings
    source: str
    questions: Path | None
    limit: int = 100
    max_new_tokens: int = 128
    batch_size: str = "1"
    device: str | None = None


def evaluate(run: AutoRun) -> dict[str, Any]:
    """Answer the prompts in all three ways and compare; what is there already is not answered again.

    Returns:
        What stands in `auto_evaluation.json`: `configuration`, `kinds`, and tokens asked and computed by way.

    Raises:
        InputError: the model has no automatic indicator, or `run.out` holds another run.
    """
    from ctxaware.harness.model import ContextLM

    check_batch_size(run.batch_size)
    refuse_own_arguments(run.model_args, ["indicator"])
    refuse_foreign_folder(run.out, (FILE, MARKDOWN))
    with locked(run.out / "lock", run.out):
        threshold = run.model_args.get("indicator_threshold")
        arguments = {key: value for key, value in run.model_args.items() if key != "indicator_threshold"}
        settings: dict[str, Any] = {"batch_size": run.batch_size, **({"device": run.device} if run.device else {})}
        lm = ContextLM(run.model, indicator=AUTO, indicator_threshold=threshold, **arguments, **settings)
        prompts = auto_prompts(lm.tokenizer, run.needles, run.source, run.questions, run.limit, run.max_new_tokens)
        assert lm._auto is not None
        configuration = {
            "model": run.model,
            "auto_indicator": lm._auto.describe(),
            "model_args": redacted(run.model_args),
            "prompts": _fingerprint(prompts),
            "batch_size": run.batch_size,
        }
        claim(run.out / RUN, configuration, run.out)
        of_kind = {kind: [prompt for prompt in prompts if prompt.kind == kind] for kind in KINDS}
        kinds = [kind for kind in KINDS if of_kind[kind]]
        with progress_bar("answering", len(MODES) * len(prompts)) as advance:
            for mode in MODES:
                lm.mark(mode)
                for kind in kinds:
                    chosen = of_kind[kind]
                    path = _path(run.out, mode, kind)
                    if _read(path, chosen) is None:
                        _answer(lm, chosen, path)
                    advance(len(chosen))
        rows = {mode: {k: _read(_path(run.out, mode, k), of_kind[k]) or [] for k in kinds} for mode in MODES}
        result = {
            "configuration": configuration,
            "kinds": [_kind(kind, {mode: rows[mode][kind] for mode in MODES}) for kind in kinds],
            "tokens": {mode: _tokens(rows[mode]) for mode in MODES},
        }
        write_json(run.out / FILE, result)
        write_text(run.out / MARKDOWN, markdown(result))
    return result


def _path(out: Path, mode: str, kind: str) -> Path:
    return out / "answers" / f"{mode}-{KINDS.index(kind)}.jsonl"


def _fingerprint(prompts: Sequence[AutoPrompt]) -> str:
    from ctxaware.runs.files import sha256_of_json

    return sha256_of_json([[p.kind, p.text, p.max_tokens, p.until] for p in prompts])


def _answer(lm: Any, prompts: Sequence[AutoPrompt], path: Path) -> None:
    """Answers of one kind in one way, a line each, and last what was asked and computed for them."""
    from lm_eval.api.instance import Instance

    before = dict(lm.n_prompt_tokens)
    texts = [prompt.render(lm.apply_chat_template) for prompt in prompts]
    requests = [
        Instance(
            "generate_until",
            {},
            (text, {**_NEUTRAL, "until": list(p.until), "max_gen_toks": p.max_tokens, "do_sample": False}),
            i,
        )
        for i, (p, text) in enumerate(zip(prompts, texts, strict=True))
    ]
    answers = lm.generate_until(requests, disable_tqdm=True)
    tokens = {key: lm.n_prompt_tokens[key] - before[key] for key in before}
    rows: list[dict[str, Any]] = []
    for prompt, text, answer in zip(prompts, texts, answers, strict=True):
        p, is_marked = lm.decision(text)
        rows.append({**_judged(prompt, answer), "indicator_probability": p, "indicator": is_marked})
    with output_file(path) as beside:
        beside.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"tokens": tokens}]), encoding="utf-8")


def _judged(prompt: AutoPrompt, answer: str) -> dict[str, Any]:
    """An answer with what the figures need of it."""
    score = None if prompt.score is None else prompt.score(answer)
    return {"cluster": prompt.cluster, "category": prompt.category, "answer": answer, "score": score}


def _read(path: Path, prompts: Sequence[AutoPrompt]) -> list[dict[str, Any]] | None:
    """The rows of these prompts and what they cost, as `_answer` wrote them.

    None where they are not whole, or were scored by other right answers or sorted otherwise than today.
    """
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        check_shape(rows[:-1], [_ANSWER], str(path))
        check_shape(rows[-1], _COST, str(path))
    except (OSError, ValueError, IndexError, RecursionError):  # an `InputError` is a ValueError
        return None
    if len(rows) != len(prompts) + 1:
        return None
    as_today = (row.items() >= _judged(p, row["answer"]).items() for p, row in zip(prompts, rows, strict=False))
    return rows if all(as_today) else None


def _tokens(by_kind: dict[str, list[dict]]) -> dict[str, int]:
    return {key: sum(rows[-1]["tokens"][key] for rows in by_kind.values()) for key in ("asked", "computed")}


def _kind(kind: str, rows: dict[str, list[dict]]) -> dict[str, Any]:
    """The figures of one kind."""
    never, always, auto = (rows[mode][:-1] for mode in (NEVER, ALWAYS, AUTO))
    clusters = [row["cluster"] for row in auto]
    identical = [a["answer"] == n["answer"] for a, n in zip(auto, never, strict=True)]
    figures: dict[str, Any] = {
        "kind": kind,
        "n": len(auto),
        "marked": asdict(mean_interval([float(row["indicator"]) for row in auto], clusters)),
        "mean_probability": sum(row["indicator_probability"] for row in auto) / len(auto),
        "identical_to_never": asdict(mean_interval(list(map(float, identical)), clusters)),
    }
    if kind == MT_BENCH:
        others = [same for same, row in zip(identical, auto, strict=True) if row["category"] != EXTRACTION]
        if others:
            figures["identical_to_never_but_extraction"] = asdict(mean_interval(list(map(float, others))))
    if auto[0]["score"] is None:
        return figures
    scores = {mode: [row["score"] for row in each] for mode, each in ((NEVER, never), (ALWAYS, always), (AUTO, auto))}
    figures["scores"] = {mode: asdict(mean_interval(values, clusters)) for mode, values in scores.items()}
    for name, mode in (("gain_of_always", ALWAYS), ("gain_of_auto", AUTO)):
        pairs = zip(scores[mode], scores[NEVER], strict=True)
        figures[name] = asdict(mean_interval([a - n for a, n in pairs], clusters, DIFFERENCE))
    gain = figures["gain_of_always"]["mean"]
    figures["share_of_gain"] = figures["gain_of_auto"]["mean"] / gain if kind in NEEDED and gain >= MIN_GAIN else None
    return figures


def table(result: dict[str, Any]) -> Table:
    """The kinds of prompts as rows."""
    columns = ("prompts", "n", "got [IND]", "never", "always", "auto", "always - never", "auto - never", "of the gain")
    rows = [_row(figures) for figures in result["kinds"]]
    tokens = result["tokens"]
    added = tokens[AUTO]["computed"] / tokens[NEVER]["computed"] - 1
    note = (
        "Scores from 0 to 1 with 95% intervals, differences paired; prompts of a passage or a cell are one cluster. "
        "Same answers of MT-Bench are without the category extraction. "
        f"Prompt tokens computed: {tokens[NEVER]['computed']:,} for never, {tokens[AUTO]['computed']:,} for auto "
        f"({added:+.2%})."
    )
    return Table("[IND] where the model says so", (*columns, "same answer as never"), rows, note)


def _row(figures: dict[str, Any]) -> tuple[Cell, ...]:
    scores = figures.get("scores", {})
    same = figures.get("identical_to_never_but_extraction") or figures["identical_to_never"]
    share = figures.get("share_of_gain")
    return (
        figures["kind"],
        figures["n"],
        _interval(figures["marked"]),
        *(_interval(scores.get(mode)) for mode in (NEVER, ALWAYS, AUTO)),
        *(_interval(figures.get(name), Difference) for name in ("gain_of_always", "gain_of_auto")),
        None if share is None else f"{share:.2f}",
        _interval(same),
    )


def _interval(value: dict[str, Any] | None, kind: type[Interval] = Interval) -> Interval | None:
    return None if value is None else kind(value["mean"], value["low"], value["high"], value["n"])


def markdown(result: dict[str, Any]) -> str:
    """The table with its title and note, as Markdown."""
    shown = table(result)
    of = result["configuration"]
    auto = of["auto_indicator"]
    head = f"Model `{of['model']}`, {auto['method']}, threshold {auto['threshold']:.3f}, β {auto['beta']:g}."
    return f"# {shown.title}\n\n{head}\n\n{shown.markdown()}\n\n{shown.note}\n"
