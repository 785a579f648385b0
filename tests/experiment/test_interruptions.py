"""`ctxaware experiment run`, a second time on one folder. Kill -9 is in test_run.py."""

import pytest

pytest.importorskip("trl")
pytest.importorskip("snakemake")

from support import experiments

from ctxaware.errors import InputError
from ctxaware.experiment.config import read_experiment
from ctxaware.experiment.plan import Plan
from ctxaware.experiment.run import run
from ctxaware.runs.claim import locked


def test_a_second_experiment_on_one_folder_is_refused(tmp_path):
    file = experiments.write(tmp_path)
    plan = Plan(read_experiment(file))
    with locked(plan.out / ".lock", plan.out), pytest.raises(InputError, match="another process is writing"):
        run(plan, file)
