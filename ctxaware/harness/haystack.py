"""Where the text around a needle comes from: the built-in corpus, essays from the hub, or a path."""

import json
from pathlib import Path

from ctxaware.data.sources import BUILTIN, HUB, load_from_hub
from ctxaware.errors import InputError
from ctxaware.harness.paths import CORPORA
from ctxaware.runs.files import is_text, user_path

ESSAYS = {"path": "baber/paul_graham_essays", "split": "train"}  # what the harness's RULER tasks load


def load_haystack(source: str = HUB, revision: str | None = None) -> str:
    """One long text: whole files in sorted order, joined with a space.

    Args:
        source: `hub` (Paul Graham's essays), `builtin`, or a path: a folder of `.txt` files (its
            sub-folders too), one `.txt` file, or a JSONL file with a `text` in each line.
        revision: of the hub data set; default its main branch.

    Raises:
        InputError: the hub can't be reached, the path doesn't exist, or there is no text in it.
    """
    if source == HUB:
        texts = load_from_hub("haystack", **ESSAYS, revision=revision)["text"]
    else:
        texts = _read(CORPORA / "haystack" if source == BUILTIN else user_path(source))
    if not all(is_text(text) for text in texts):
        raise InputError(f"haystack {source!r} holds half a surrogate pair, which is no text; replace it")
    texts = [text.strip() for text in texts if text.strip()]
    if not texts:
        raise InputError(f"haystack {source!r} holds no text; expected at least one non-empty .txt file or JSONL line")
    return " ".join(texts)


def _read(path: Path) -> list[str]:
    if path.is_dir():
        try:
            files = sorted(path.glob("**/*.txt"))
        except OSError as error:  # a folder in it went away meanwhile
            raise InputError(f"haystack folder {path} can't be read: {error.filename}: {error.strerror}") from error
        if not files:
            raise InputError(
                f"haystack folder {path} has no .txt file; put the text there as .txt, or pass another folder"
            )
        return [_text(file) for file in files]
    if not path.is_file():
        raise InputError(
            f"haystack {str(path)!r} does not exist; pass hub, builtin, or a path to a folder of .txt files"
        )
    if path.suffix == ".txt":
        return [_text(path)]
    if path.suffix == ".jsonl":
        return [_line_text(path, n, line) for n, line in enumerate(_text(path).split("\n"), 1) if line.strip()]
    raise InputError(
        f"haystack {path}: expected a folder of .txt files, a .txt or a .jsonl file; pass haystack=… of its own"
    )


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"haystack file {file} is not UTF-8 at byte {error.start}; convert it to UTF-8") from error
    except OSError as error:  # a folder called x.txt, for one
        raise InputError(f"haystack file {file} can't be read: {error.strerror}") from error


def _line_text(path: Path, number: int, line: str) -> str:
    try:
        text = json.loads(line)["text"]
        if not isinstance(text, str):
            raise TypeError(f"text is {type(text).__name__}")
        return text
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f'haystack {path}, line {number}: expected a JSON object with "text" ({error})') from error
