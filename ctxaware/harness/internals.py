"""Everything private of lm-eval that the project touches; a test for each fails when a release changes it."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from ctxaware.errors import InputError, print_error


def running_model():
    """The harness's model (without its cache around it) in the evaluation that this is called from, else None.

    `simple_evaluate` and `evaluate` hold it as `lm` while they load tasks and build requests.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == "lm_eval.evaluator" and frame.f_locals.get("lm") is not None:
            lm = frame.f_locals["lm"]
            return lm.__dict__.get("lm", lm)  # CachingLM keeps it as `lm`
        frame = frame.f_back
    return None


def uses_chat_template() -> bool | None:
    """Whether the evaluation that this is called from applies the chat template; None outside an evaluation."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == "lm_eval.evaluator" and "apply_chat_template" in frame.f_locals:
            return bool(frame.f_locals["apply_chat_template"])
        frame = frame.f_back
    return None


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


def is_chat_endpoint(lm) -> bool:
    """Whether the model takes messages, and its server applies the template."""
    return any(cls.__name__ == "LocalChatCompletion" for cls in type(lm).__mro__)


def _one_line_excepthook(kind, error, traceback, previous=sys.excepthook):
    if not isinstance(error, InputError):
        return previous(kind, error, traceback)
    print_error(error)
    raise SystemExit(2)  # the interpreter takes the exit code from here


@contextlib.contextmanager
def one_line_in_lm_eval():
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
