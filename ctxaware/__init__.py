"""Context awareness of instruction-tuned language models: measure it, find what depends on it, mend it."""

__version__ = "0.1.0"
