"""The files of a model's folder: which of them the model is made of, and a hash of them."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from ctxaware.errors import InputError

HASHED_WHOLE = 1 << 30  # bytes; of a larger file `folder_hash` reads blocks
_N_BLOCKS, _BLOCK = 4096, 1 << 16
# what a model is made of: weights, configurations, tokenizer, chat template, code; not what was fitted or written later
_MADE_OF = (
    r"(?!auto_indicator\.|training_args\.bin).*\.(safetensors|bin|gguf|model|spm|tiktoken|jinja|py|index\.json)"
    r"|(.*_)?config\.json|(tokenizer|chat_template|vocab|merges|added_tokens|special_tokens|normalizer).*\.(json|txt|bpe)"
)


_TEMPLATES = "additional_chat_templates"  # a folder of the tokenizer's


def folder_hash(folder: Path, pattern: str = _MADE_OF) -> str:
    """A hash of the files whose names match, as `models.files_fingerprint` takes it, and of further chat templates.

    Raises:
        InputError: one of them can't be read.
    """
    digest = hashlib.sha256()
    try:
        files = [*folder.iterdir(), *(folder / _TEMPLATES).glob("*.jinja")]
        for path in sorted(p for p in files if p.is_file() and not p.name.startswith(".")):
            if not re.fullmatch(pattern, path.name):
                continue
            size = path.stat().st_size
            digest.update(f"{path.name}\0{size}\0".encode(errors="surrogateescape"))
            with path.open("rb") as file:
                for start, length in _blocks(size):
                    file.seek(start)
                    digest.update(file.read(length))
    except OSError as error:
        raise InputError(f"can't read {error.filename or folder}: {error.strerror}; restore the model") from error
    return f"sha256:{digest.hexdigest()[:32]}"


def _blocks(size: int) -> Iterable[tuple[int, int]]:
    """Where to read, and how many bytes."""
    if size <= HASHED_WHOLE:
        return ((start, 1 << 24) for start in range(0, size, 1 << 24))
    return (((size - _BLOCK) * i // (_N_BLOCKS - 1), _BLOCK) for i in range(_N_BLOCKS))
