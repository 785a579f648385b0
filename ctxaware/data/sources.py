"""`source`: hub, builtin or a path, the same word everywhere; the hub call and its errors."""

import logging
import re
from typing import TYPE_CHECKING

from ctxaware.errors import InputError, first_line

if TYPE_CHECKING:
    from datasets import Dataset

HUB, BUILTIN = "hub", "builtin"
logger = logging.getLogger(__name__)


def load_from_hub(
    key: str, path: str, split: str, name: str | None = None, revision: str | None = None, remedy: str = ""
) -> "Dataset":
    """A split of a hub data set, as `datasets.Dataset`.

    Args:
        key: the setting that chose the hub (`haystack` or `source`), named in the error.
        path: the data set's hub name.
        split: the split's name.
        name: the configuration.
        revision: branch, tag or commit; None for the data set's main branch.
        remedy: what the error says to do; "" for the two other values of the setting.

    Raises:
        InputError: the hub can't be reached or has no such data; names the two other ways.
    """
    import datasets

    try:
        dataset = datasets.load_dataset(path, name, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:  # offline, unreachable, unknown name, script data set
        cause = first_line(error)
        remedy = remedy or f"pass {key}=builtin for the built-in sample, or {key}=/path/to/your/copy"
        raise InputError(
            f"can't load {path} (revision {revision or 'main'}) from the hub: {cause} - {remedy}"
        ) from error
    _resolved[key] = {path: _commit(dataset) or revision or "main"}
    logger.info("%s: %s rows of %s", key, len(dataset), _resolved[key])
    return dataset


_resolved: dict[str, dict[str, str]] = {}  # of this process's hub data sets, by the setting that chose them


def _commit(dataset: "Dataset") -> str | None:
    """The commit that a hub data set was read at, from the addresses of its files."""
    checksums = getattr(getattr(dataset, "info", None), "download_checksums", None) or {}
    commits = [match[1] for address in checksums if (match := re.search(r"@([0-9a-f]{40})/", str(address)))]
    return commits[0] if commits else None


def resolved_revisions(source: str, haystack: str | None = None) -> dict[str, str]:
    """Hub name and revision of what these settings took from the hub, for a run's results; empty for other sources."""
    keys = [key for key, value in (("source", source), ("haystack", haystack or source)) if value == HUB]
    return {path: revision for key in keys for path, revision in _resolved.get(key, {}).items()}
