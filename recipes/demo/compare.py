"""One task's scores in several runs of lm_eval, with intervals and paired differences to the first one.

    python recipes/demo/compare.py "vanilla=demo-train/vanilla" "with [IND]=demo-train/indicator_ind"

Each argument is a name and a folder that `lm_eval --log_samples --output_path FOLDER` wrote for one task, or a file of
samples in it. The runs must have asked the same questions.
"""

import argparse
from pathlib import Path

from ctxaware.errors import InputError, print_error
from ctxaware.intervals import bootstrap_mean
from ctxaware.report.samples import find_samples


def scores(path: Path) -> dict[tuple[int, str], float]:
    """Score by question (its number and its target), of a file or of the newest run in a folder."""
    found = find_samples(path, "")
    newest = [file for file in found if file.date == max(file.date for file in found)]
    if len(newest) > 1:
        raise InputError(f"{path} has samples of {', '.join(f.task for f in newest)}; pass the file of one of them")
    return {(row["doc_id"], str(row["target"])): row["score"] for row in newest[0].rows()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER")
    runs = [run.rpartition("=") for run in parser.parse_args().runs]
    if not all(name for name, _, _ in runs):
        parser.error("each run must be NAME=FOLDER")
    found = {name: scores(Path(path)) for name, _, path in runs}
    control = next(iter(found.values()))
    print("| | score [95% interval] | difference to the first, paired | n |\n|---|---|---|---|")
    for name, of_run in found.items():
        if of_run.keys() != control.keys():
            raise InputError(f"{name} was asked other questions than the first run; run both with the same settings")
        difference = bootstrap_mean([of_run[idx] - control[idx] for idx in control])
        told = "" if of_run is control else difference.signed
        print(f"| {name} | {bootstrap_mean(list(of_run.values()))} | {told} | {len(of_run)} |")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print_error(error)
        raise SystemExit(2) from error
