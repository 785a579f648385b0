"""Where the recipes are: training scripts, their configs, and the experiment's workflow."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def recipes_folder() -> Path:
    """`ctxaware/recipes` of an installation, `recipes/` of a checkout."""
    installed = _PACKAGE / "recipes"
    return installed if installed.is_dir() else _PACKAGE.parent / "recipes"


def located(path: str) -> str:
    """A path as it is; one below `recipes/` that the working directory lacks is that of the installed recipes."""
    if path.startswith("recipes/") and not Path(path).exists():
        shipped = recipes_folder() / path.removeprefix("recipes/")
        return str(shipped) if shipped.exists() else path
    return path


def snakefile() -> Path:
    """The workflow."""
    return recipes_folder() / "experiment" / "Snakefile"


def examples() -> dict[str, Path]:
    """The experiments that ship with ctxaware, by name."""
    return {path.stem: path for path in sorted((recipes_folder() / "experiment").glob("*.yaml"))}
