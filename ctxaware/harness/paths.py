"""Where the harness's files are: the task YAMLs and the built-in samples."""

from pathlib import Path

CORPORA = Path(__file__).parent / "corpora"
_PACKAGE = Path(__file__).parents[1]


def tasks_folder() -> Path:
    """The folder of the task YAMLs: `ctxaware/tasks` of an installation, `tasks/` of a checkout.

    An editable installation reads the checkout's, so an edited YAML is seen at once.
    """
    installed = _PACKAGE / "tasks"
    return installed if installed.is_dir() else _PACKAGE.parent / "tasks"
