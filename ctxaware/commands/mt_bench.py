"""MT-Bench: `ctxaware mt-bench answer | judge | show`."""

import contextlib
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ctxaware.mt_bench.store import Outcome
    from ctxaware.mt_bench.summary import Cell, Difference, Results

INCOMPLETE = 3  # exit code where the table is not whole


class Indicator(str, Enum):
    """As `indicator.marking.MODES`."""

    never = "never"
    always = "always"
    auto = "auto"


app = typer.Typer()
mt_bench = typer.Typer(
    no_args_is_help=True,
    help="Does a model still follow instructions? MT-Bench with FastChat's judge: answer, judge, show.",
)
app.add_typer(mt_bench, name="mt-bench")

Data = Annotated[Path, typer.Option(help="A folder laid out as FastChat's llm_judge/data.", show_default=False)]
BaseUrl = Annotated[str | None, typer.Option(help="An OpenAI-compatible endpoint, as http://localhost:8000/v1.")]
KeyEnv = Annotated[
    str | None,
    typer.Option(
        help="The environment variable with the endpoint's key; OPENAI_API_KEY without --base-url. It is never written."
    ),
]
Parallel = Annotated[int, typer.Option(min=1, help="Calls to the endpoint at a time.")]


@mt_bench.command("answer", short_help="Let a model answer the questions.")
def answer_command(
    model: Annotated[str, typer.Option(help="A folder or hub name; with --base-url the endpoint's name for it.")],
    model_id: Annotated[str, typer.Option(help="The name under which it is judged and shown.")],
    data_dir: Data,
    out: Annotated[Path, typer.Option(help="The folder of answers and judgments.")],
    indicator: Annotated[
        Indicator, typer.Option(help="\\[IND] on both user turns: never, always, or auto: where the model says so.")
    ] = Indicator.never,
    peft: Annotated[str | None, typer.Option(help="An adapter to put on the model: a folder or hub name.")] = None,
    base_url: BaseUrl = None,
    api_key_env: KeyEnv = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="With --base-url and --indicator always: the folder of the served model's tokenizer."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of one answer; FastChat's limit is 1024.")] = 1024,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions that a local model answers together.")] = 8,
    parallel: Parallel = 1,
    seed: Annotated[int, typer.Option(help="Of the sampled categories: writing, roleplay, stem, humanities.")] = 0,
) -> None:
    """Let a model answer the questions, in FastChat's answer format. Run it again after an interruption: it goes on.

    \b
    ctxaware mt-bench answer --model ./sft-vanilla --model-id vanilla --data-dir DATA --out mtb
    ctxaware mt-bench answer --model ./sft-ind --model-id ind --indicator always --data-dir DATA --out mtb
    ctxaware mt-bench answer --model ./prepared --peft ./adapter --model-id lora --data-dir DATA --out mtb
    ctxaware mt-bench answer --model my-model --base-url http://localhost:8000/v1 --parallel 8 ...

    DATA holds mt_bench/question.jsonl of FastChat's repository (fastchat/llm_judge/data).
    Exit code 3: some questions have no answer; what failed is in OUT/failures.
    """
    from ctxaware.errors import InputError
    from ctxaware.mt_bench.answers import AnswerRun, answer
    from ctxaware.mt_bench.endpoint import EndpointSettings

    if tokenizer and not base_url:
        raise InputError("--tokenizer goes with --base-url; a local model brings its own")
    if api_key_env and not base_url:
        raise InputError("--api-key-env goes with --base-url; a local model needs no key")
    if peft and base_url:
        raise InputError("--peft goes with a local model; the endpoint serves an adapter under a name of its own")
    if indicator == Indicator.always and base_url and not tokenizer:
        raise InputError(
            "--indicator always through --base-url needs --tokenizer, the folder of the served model's tokenizer: "
            "nothing else says whether [IND] is a token there"
        )
    run = AnswerRun(
        model,
        model_id,
        data_dir,
        out,
        tokenizer=tokenizer,
        peft=peft,
        indicator=indicator.value,
        endpoint=EndpointSettings(base_url, api_key_env, parallel=parallel) if base_url else None,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        seed=seed,
    )
    with _progress("answers") as on_progress:
        outcome = answer(run, on_progress)
    _report(outcome, "answers")


@mt_bench.command("judge", short_help="Let a judge rate the answers.")
def judge_command(
    out: Annotated[Path, typer.Option(help="The folder that `answer` wrote to.")],
    data_dir: Data,
    judge_model: Annotated[str, typer.Option(help="The judge's name at the endpoint, as gpt-4.")],
    base_url: BaseUrl = None,
    api_key_env: KeyEnv = None,
    parallel: Parallel = 1,
    model_id: Annotated[
        list[str] | None, typer.Option(help="A model to judge; can be repeated. All that have answers, if not given.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what it would cost, and one prompt a kind.")
    ] = False,
) -> None:
    """Let a judge rate each answer from 1 to 10, by FastChat's own prompts and rules. Run it again after an
    interruption: it gets the judgments that are missing, and no other.

    \b
    ctxaware mt-bench judge --out mtb --data-dir DATA --judge-model gpt-4 --dry-run
    OPENAI_API_KEY=... ctxaware mt-bench judge --out mtb --data-dir DATA --judge-model gpt-4 --parallel 8
    ctxaware mt-bench judge --out mtb --data-dir DATA --judge-model my-judge --base-url http://localhost:8000/v1

    A call that failed, or a judgment without a usable rating, is never a score: it is kept in OUT/failures and tried
    again next time. Exit code 3: judgments are missing.
    """
    if dry_run:
        _print_dry_run(out, data_dir, judge_model, model_id)
        return
    from ctxaware.mt_bench.endpoint import EndpointSettings
    from ctxaware.mt_bench.judge import JudgeRun, judge

    endpoint = EndpointSettings(base_url, api_key_env, parallel=parallel)
    with _progress("judgments") as on_progress:
        outcome = judge(JudgeRun(out, data_dir, judge_model, model_id, endpoint), on_progress)
    _report(outcome, "judgments")


@mt_bench.command("show", short_help="The table, and the paired difference of two models.")
def show_command(
    out: Annotated[Path, typer.Argument(help="The folder of answers and judgments.", show_default=False)],
    judge_model: Annotated[str | None, typer.Option(help="Whose judgments; needed where there are several.")] = None,
    model_id: Annotated[
        list[str] | None, typer.Option(help="A model to show; can be repeated. The first of two is the base.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Where the PNG goes; beside the judgments, if not given.")
    ] = None,
) -> None:
    """FastChat's own summary, averages by turn and category, flags, a picture, and of two models the paired difference.

    \b
    ctxaware mt-bench show mtb
    ctxaware mt-bench show mtb --model-id vanilla --model-id ind --picture mt-bench.png

    The difference is the second model minus the first, paired by question and turn, with a 95% interval.
    Exit code 3: ratings are missing, and each average says how many.
    """
    from ctxaware.mt_bench.summary import Results

    results = Results(out, judge_model, model_id)
    print(results.fastchat_summary())
    _print_tables(results)
    for line in results.flags():
        print(f"flag: {line}")
    picture = picture or results.path.with_suffix(".png")
    results.draw(picture)
    print(f"picture: {picture}")
    if not results.complete:
        print(f"incomplete: {len(results.rows)} of {results.n_expected} ratings")
        raise typer.Exit(INCOMPLETE)


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """`on_progress(done, total)`; what was done before this run is no part of the estimate."""
    from ctxaware.runs.progress import progress_bar

    with contextlib.ExitStack() as stack:
        advance: Callable[[float, int], None] | None = None
        seen = 0

        def on_progress(done: int, total: int) -> None:
            nonlocal advance, seen
            if advance is None:
                advance, seen = stack.enter_context(progress_bar(what, total - done)), done
            advance(done - seen, 0)
            seen = done

        yield on_progress


def _report(outcome: "Outcome", what: str) -> None:
    print(f"{outcome.n_done} of {outcome.n_expected} {what}, {outcome.n_new} of them new: {outcome.path}")
    if outcome.n_failed:
        print(f"{outcome.n_failed} failed: {outcome.failures}")
    if outcome.stopped:
        print(f"stopped early: {outcome.stopped}")
    if not outcome.complete:
        print("incomplete; run the same command again for what is missing")
        raise typer.Exit(INCOMPLETE)


def _print_dry_run(out: Path, data_dir: Path, judge_model: str, model_ids: list[str] | None) -> None:
    from ctxaware.mt_bench.plan import dry_run

    plan = dry_run(out, data_dir, judge_model, model_ids=model_ids)
    for name, messages in plan.examples.items():
        print(f"##### one prompt of {name}")
        for message in messages:
            print(f"--- {message['role']}\n{message['content']}")
        print()
    print(f"calls: {plan.n_calls} ({plan.n_done} judgments are there)")
    print(f"prompt tokens: about {plan.n_prompt_tokens:,} (4 characters a token)")
    output = f"at most {plan.max_output_tokens:,}"
    if plan.n_output_tokens is not None:
        output = f"about {plan.n_output_tokens:,} if they run as long as those that are there, {output}"
    print(f"output tokens: {output}")


def _print_tables(results: "Results") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if Console().is_terminal else 140, highlight=False)
    groups: list[tuple[str, int | None, str | None]] = [("all", None, None), ("turn 1", 1, None), ("turn 2", 2, None)]
    groups += [(category, None, category) for category in results.categories]
    pair = results.models if len(results.models) == 2 else None
    table = Table("average rating", *results.models, *(["difference [95% interval], pairs"] if pair else []))
    for name, turn, category in groups:
        cells = [_cell(results.cell(model, turn, category)) for model in results.models]
        if pair:
            cells.append(_difference(results.difference(pair[1], pair[0], turn, category)))
        table.add_row(*map(Text, (name, *cells)))  # as it is: brackets are no markup
    console.print(table)
    if pair:
        print(
            f"difference: {pair[1]} minus {pair[0]}, paired by question and turn; both turns of a question count as one"
        )


def _cell(cell: "Cell") -> str:
    return f"{'none' if cell.mean is None else f'{cell.mean:.2f}'} ({cell.n_scored}/{cell.n_expected})"


def _difference(difference: "Difference") -> str:
    if difference.mean is None:
        return f"none (0/{difference.n_expected})"
    interval = "none" if difference.low is None else f"{difference.low:+.2f}, {difference.high:+.2f}"
    return f"{difference.mean:+.2f} [{interval}] ({difference.n_pairs}/{difference.n_expected})"
