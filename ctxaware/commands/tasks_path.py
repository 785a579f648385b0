"""`ctxaware tasks-path`: where the harness's tasks are."""

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
    from ctxaware.harness.paths import tasks_folder

    print(tasks_folder())
