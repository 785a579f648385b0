"""`ctxaware heatmap`: pictures of needle grids."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


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
    from ctxaware import plots
    from ctxaware.errors import InputError
    from ctxaware.report import samples
    from ctxaware.runs.shapes import NUMBER, check_shape

    drawn: dict[Path, Path] = {}
    for file in samples.find_samples(path, "nih_ctx"):
        png = (out or file.path.parent) / f"{file.path.stem}.png"
        if png in drawn:
            raise InputError(f"{drawn[png]} and {file.path} would both be drawn in {png}; leave out --out")
        drawn[png] = file.path
        rows, results = file.rows(), file.results()
        if any("recall" not in row for row in rows):
            raise InputError(f"{file.path} holds answers without recall; run the task again without --predict_only")
        for row in rows:
            check_shape(row["recall"], NUMBER, f"{file.path}, recall of document {row['doc_id']}")
            if not 0 <= row["recall"] <= 1:
                raise InputError(f"{file.path}: document {row['doc_id']} has recall {row['recall']:g}, expected 0–1")
        model = results.get("model_name") or file.path.parent.name
        template = f"with{'' if results.get('chat_template') else 'out'} chat template" if results else ""
        plots.recall_heatmap(
            *samples.needle_cells(rows, file.path),
            [row["recall"] for row in rows],
            " · ".join(filter(None, [file.task, Path(model).name, template])),
            png,
        )
        print(png)
