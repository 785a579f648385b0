"""Everything private of lm-eval that the project touches; a test for each fails when a release changes it."""

import contextlib
import functools
import json
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType, TracebackType
from typing import Any

from ctxaware.errors import InputError, first_line, print_error

_OF_FILE = "ctxaware "  # begins the keys in a file of kept answers that are of no answer


def _in_evaluation(name: str) -> Any | None:
    """A local variable of `simple_evaluate` or `evaluate`, where this is called from an evaluation, else None."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_globals.get("__name__") == "lm_eval.evaluator" and frame.f_locals.get(name) is not None:
            return frame.f_locals[name]
        frame = frame.f_back
    return None


def running_model() -> Any | None:
    """The harness's model (without its cache around it) in the evaluation that this is called from, else None.

    `simple_evaluate` and `evaluate` hold it as `lm` while they load tasks and build requests.
    """
    lm = _in_evaluation("lm")
    return None if lm is None else lm.__dict__.get("lm", lm)  # CachingLM keeps it as `lm`


def model_arguments() -> dict[str, Any] | None:
    """`model_args` of the evaluation that this is called from; None where it was given a model, or outside one."""
    from lm_eval.utils import simple_parse_args_string

    given = _in_evaluation("model_args")
    return simple_parse_args_string(given) if isinstance(given, str) else given


def uses_chat_template() -> bool | None:
    """Whether the evaluation that this is called from applies the chat template; None outside an evaluation."""
    is_applied = _in_evaluation("apply_chat_template")
    return None if is_applied is None else bool(is_applied)


def asked_examples() -> int:
    """`num_fewshot` of the evaluation that this is called from; 0 where it is not given, or outside one.

    The harness ignores it for a task that has a number of its own.
    """
    return int(_in_evaluation("num_fewshot") or 0)


@contextlib.contextmanager
def fixed_batch_size(lm: Any, n: int) -> Iterator[None]:
    """Let one of the harness's HF models work in batches of `n`, whatever it was told."""
    old, lm.batch_size_per_gpu = lm.batch_size_per_gpu, n
    try:
        yield
    finally:
        lm.batch_size_per_gpu = old


def detect_batch_size(lm: Any, requests: Sequence[tuple] | None = None) -> int:
    """The batch size of one of the harness's HF models; `auto` is tried out, as the harness does.

    Args:
        lm: the model.
        requests: of log-likelihoods (texts, context's and continuation's ids); None tries the whole window.
    """
    if lm.batch_size != "auto":
        return int(lm.batch_size)
    longest = max(requests, key=lambda request: len(request[1]) + len(request[2])) if requests else None
    return lm._detect_batch_size([longest] if longest else None)


def own_tokenizer(lm: Any | None, is_optional: bool = False) -> Any | None:
    """The transformers tokenizer of a model of the harness; None where it has none of its own (endpoints).

    Some models load it when it is first asked for, by a hub name of theirs.

    Args:
        lm: a model of the harness, or None.
        is_optional: None in place of an error where it can't be loaded.

    Raises:
        InputError: it can't be loaded.
    """
    try:
        tokenizer = getattr(lm, "tokenizer", None)
    except (OSError, ValueError) as error:
        if is_optional:
            return None
        raise InputError(
            f"can't load the tokenizer of this back end: {first_line(error)} - name another in metadata: tokenizer"
        ) from error
    return tokenizer if hasattr(tokenizer, "is_fast") else None


def is_chat_endpoint(lm: Any) -> bool:
    """Whether the model takes messages, and its server applies the template."""
    return any(cls.__name__ == "LocalChatCompletion" for cls in type(lm).__mro__)


def _one_line_excepthook(
    kind: type[BaseException],
    error: BaseException,
    traceback: TracebackType | None,
    previous: Callable[..., Any] = sys.excepthook,
) -> None:
    if not isinstance(error, InputError):
        previous(kind, error, traceback)
        return
    print_error(error)
    raise SystemExit(2)  # the interpreter takes the exit code from here


@contextlib.contextmanager
def one_line_in_lm_eval() -> Iterator[None]:
    """Let an `InputError` that ends the `lm_eval` command show as one line with exit code 2.

    Only the command is touched, and only when the error is on its way: a script that calls
    `simple_evaluate` sees the ordinary exception with its traceback.
    """
    try:
        yield
    except InputError:
        main = getattr(sys.modules.get("__main__"), "__spec__", None)
        if "lm_eval.__main__" in sys.modules or getattr(main, "name", None) == "lm_eval.__main__":
            sys.excepthook = _one_line_excepthook
        raise


@contextlib.contextmanager
def answers_cached_as_json() -> Iterator[None]:
    """The harness's cache of answers (`use_cache`) holds JSON inside, where it holds pickles by itself.

    Reading a pickle runs code: a folder of results from somebody else could then do anything.
    """
    from lm_eval.api import model

    harness_own = model.CachingLM

    class JsonCachingLM(harness_own):  # type: ignore[misc, valid-type]
        dbdict: Any

        def __init__(self, lm: Any, cache_db: str) -> None:
            _check_database(cache_db)
            super().__init__(lm, cache_db)
            keep_as_json(self)

    model.CachingLM = JsonCachingLM
    try:
        yield
    finally:
        model.CachingLM = harness_own


def keep_as_json(holder: Any) -> None:
    """Let the harness's file of kept answers, where there is one, hold JSON; nothing has been read from it yet.

    Args:
        holder: what has it as `dbdict`: the harness's `CachingLM`, or its `CacheHook`.
    """
    if (kept := holder.dbdict) is not None:
        kept.encode, kept.decode = json.dumps, functools.partial(_read_answer, kept.filename)


def _check_database(cache_db: str) -> None:
    """Raise `InputError` for a file that is damaged or no database; the library would only log that in its thread."""
    if not os.path.exists(cache_db):
        return
    with contextlib.closing(sqlite3.connect(cache_db)) as database:
        try:
            (answer,) = next(database.execute("PRAGMA quick_check"))
        except sqlite3.OperationalError:  # no permission, most often
            raise
        except sqlite3.DatabaseError as error:
            answer = str(error)
    if answer != "ok":
        raise InputError(f"the cache of answers {cache_db} is damaged ({answer}); remove it and run again")


def _read_answer(cache_db: str, value: Any) -> Any:
    try:
        answer = json.loads(value)
    except (ValueError, TypeError, RecursionError) as error:
        with one_line_in_lm_eval():
            raise InputError(f"the cache of answers {cache_db} does not hold JSON; remove it and run again") from error
    return tuple(answer) if isinstance(answer, list) else answer  # a log-likelihood is a pair


def add_to_samples(of_prompt: Callable[[str], dict[str, Any]]) -> None:
    """Let each sample that the running evaluation writes hold more, whatever its task.

    Args:
        of_prompt: what to add, by the prompt of the sample's first request.
    """
    tracker = _in_evaluation("evaluation_tracker")
    if tracker is None or "save_results_samples" in vars(tracker):
        return
    save = tracker.save_results_samples

    def save_with_more(task_name: str, samples: Any) -> None:
        save(task_name, [{**sample, **of_prompt(sample["arguments"][0][0])} for sample in samples])

    tracker.save_results_samples = save_with_more


def keep_answer(lm: Any, kind: str, arguments: tuple, answer: Any) -> None:
    """Keep something beside the answers that the harness keeps (`use_cache`); does nothing where it keeps none."""
    lm.cache_hook.add_partial(kind, arguments, answer)


def kept_answer(lm: Any, kind: str, arguments: tuple) -> Any | None:
    """What `keep_answer` kept, in this run or in one that was interrupted; None where there is nothing."""
    from lm_eval.api.model import hash_args

    kept = lm.cache_hook.dbdict
    return None if kept is None else kept.get(hash_args(kind, arguments))


def refuse_kept(cache_hook: Any, what: str, own: str | None) -> None:
    """Refuse a file of kept answers that another model gave, or the same one in another way.

    Args:
        cache_hook: of the harness; one without a file is fine.
        what: what a file of answers has one of, and the key of an answer does not show.
        own: this run's; None where it has none.

    Raises:
        InputError: the file holds answers of another.
    """
    kept = cache_hook.dbdict
    if kept is None:
        return
    key = f"{_OF_FILE}{what}"
    if all(name.startswith(_OF_FILE) for name in kept):  # no answer yet
        kept[key] = own
    if (stored := kept.get(key)) != own:
        raise InputError(
            f"the kept answers (use_cache) are of another {what}: {stored or 'none'}, in this run {own or 'none'}; "
            "pass another file"
        )
