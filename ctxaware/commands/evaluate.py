"""Commands around the harness: where the tasks are, pictures of its results, the embedded model."""

from pathlib import Path

import typer

app = typer.Typer()


@app.command("tasks-path")
def tasks_path() -> None:
    """Print the folder of the lm-eval tasks, for `lm_eval --include_path "$(ctxaware tasks-path)"`.

    Only needed where automatic discovery is switched off with CTXAWARE_NO_DISCOVERY=1.
    """
    print(Path(__file__).parents[1] / "tasks")
