"""Versions of the packages that decide a result, as manifests note them."""

import contextlib
from importlib import metadata

COMPUTE = ("torch", "transformers", "tokenizers")


def versions(*packages: str) -> dict[str, str]:
    """By name the installed version of ctxaware, of `COMPUTE` and of `packages`; one that is absent is left out."""
    installed = {}
    for name in ("ctxaware", *COMPUTE, *packages):
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed
