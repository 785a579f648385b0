"""Context awareness of instruction-tuned language models: measure it, find what depends on it, mend it.

The public names are loaded when they are first used: `import ctxaware` alone imports nothing heavy.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {  # public name: module
    "ContextAwarenessCallback": "ctxaware.training.watch",
    "ContextLM": "ctxaware.harness.model",
    "DataSelectionCallback": "ctxaware.training.callback",
    "InputError": "ctxaware.errors",
    "add_indicator": "ctxaware.indicator.token",
    "append_indicator": "ctxaware.indicator.marking",
    "attention_mass": "ctxaware.attention.mass",
    "demo_model": "ctxaware.demo",
    "load_auto_indicator": "ctxaware.auto.indicator",
    "mark_messages": "ctxaware.indicator.marking",
    "mean_interval": "ctxaware.intervals",
    "probe_questions": "ctxaware.harness.probe",
    "score_conversations": "ctxaware.scores.formula",
    "select_turns": "ctxaware.scores.threshold",
    "steer": "ctxaware.attention.steering",
    "with_indicator": "ctxaware.auto",
}
__all__ = ["__version__", "auto", *_HOMES]


def __getattr__(name: str) -> Any:
    if name == "auto":
        return importlib.import_module("ctxaware.auto")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'ctxaware' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
