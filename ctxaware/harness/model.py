"""`lm_eval --model ctxaware`: the harness's HF model with what measuring the use of the context needs.

- `prefix_cache=true` (default): what prompts share is prefilled once, with the same answers (`harness/hf.py`);
- `indicator=never|always`: `[IND]` on the user messages of any task (`harness/indicator.py`);
- `indicator=auto`: on the last one where the model itself says that the prompt needs it (`harness/auto.py`);
- `steer_alpha=0.3,steer_heads=retrieval|all|heads.json`: attention to all but the user's tokens scaled down, in
  prompts and answers (`harness/steering.py`).

What changes the model itself is a class before `PrefixReuseLM`. It overrides `around_call`, opened around every call of
the transformers model with the tokens of that call, and `cache_key`, which says how far two prompts may share keys and
values; with `keeps_messages` set, `messages_of` gives the messages behind a prompt.
"""

import difflib
import inspect
import warnings
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from ctxaware.devices import choose_device
from ctxaware.errors import InputError
from ctxaware.harness.auto import AutoMixin, longest_start
from ctxaware.harness.hf import PrefixReuseLM
from ctxaware.harness.internals import one_line_in_lm_eval, refuse_kept
from ctxaware.harness.settings import CHANGE_NO_ANSWER
from ctxaware.harness.steering import SteeringMixin
from ctxaware.models import (
    BETWEEN_LIBRARIES,
    adapter_of,
    check_checkpoint,
    check_finite,
    files_fingerprint,
    is_adapter,
)
from ctxaware.runs.secrets import redacted

_DEFAULT_DEVICE = "cuda:0"  # what `lm_eval` passes where nobody named a device, also without a GPU
# arguments with which the harness loads something else than the files of `pretrained`
_LOADED_OTHERWISE = {"autogptq", "delta", "gguf_file", "gptqmodel", "subfolder", "trust_remote_code"}


# arguments that kept answers are told apart by in a way of their own
_TOLD_APART = {
    *("pretrained", "revision", "peft", "tokenizer", "dtype"),
    *("indicator", "indicator_threshold", "steer_alpha", "steer_heads"),
}


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


class ContextLM(AutoMixin, SteeringMixin, PrefixReuseLM):
    """The harness's HF model with prefix reuse, the indicator and steering.

    Args:
        args, kwargs: as `HFLM`, and `prefix_cache`, `prefix_cache_tokens`, `indicator`, `indicator_threshold`,
            `steer_alpha`, `steer_heads`.

    Raises:
        InputError: an argument that is one of ours but for its spelling, or a value that it can't have; a device that
            is not there; a model whose files or weights are not whole.
    """

    keeps_messages = False  # True: `messages_of` knows what was rendered

    def __init__(self, *args: Any, **kwargs: Any):
        name, device = kwargs.get("pretrained", args[0] if args else None), kwargs.get("device")
        if device in (None, _DEFAULT_DEVICE) and not torch.cuda.is_available():
            device = kwargs["device"] = "cpu"  # the harness's own default is CUDA
        self._messages: dict[str, list[dict]] = {}
        loaded_otherwise = _LOADED_OTHERWISE & {key for key, value in kwargs.items() if value}
        is_checked = isinstance(name, str) and not loaded_otherwise
        self._arguments = {"pretrained": name, **kwargs} if is_checked else {}
        with one_line_in_lm_eval():
            refuse_misspelt(type(self), kwargs)
            if isinstance(name, str) and device is not None:
                choose_device(device)
            if is_checked:
                check_checkpoint(str(name), kwargs.get("revision"))
            if (peft := kwargs.get("peft")) and adapter_of(peft) is None:
                raise InputError(f"peft={peft} is no adapter: it has no adapter_config.json; pass an adapter as peft")
            if peft and is_adapter(str(name), kwargs.get("revision")):
                raise InputError(
                    f"pretrained={name} is an adapter too, which would be left out; merge it into its base "
                    "(PEFT's merge_and_unload), save the model, and pass its folder as pretrained"
                )
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", BETWEEN_LIBRARIES, FutureWarning)
                super().__init__(*args, **kwargs)
            if isinstance(name, str):
                self._check_device(device)
                check_finite(name, self.model)

    def set_cache_hook(self, cache_hook: Any) -> None:
        """As the base; kept answers of another model, or of other arguments of it, are refused (`use_cache`).

        The harness's file does not say whose they are. Of a model that is passed as an object, nothing is known.
        """
        super().set_cache_hook(cache_hook)
        if self._arguments and cache_hook.dbdict is not None:
            with one_line_in_lm_eval():
                refuse_kept(cache_hook, "model", self._answered_by())

    def _answered_by(self) -> str:
        """The model's files, adapter and tokenizer by their content, its dtype, and what else may change an answer."""
        given = self._arguments
        parts = [files_fingerprint(given["pretrained"], given.get("revision")), str(self.model.dtype)]
        parts += [f"{key} {files_fingerprint(given[key])}" for key in ("peft", "tokenizer") if _is_name(given.get(key))]
        others = {k: v for k, v in redacted(given).items() if k not in _TOLD_APART | CHANGE_NO_ANSWER}
        parts += [f"{key}={value}" for key, value in sorted(others.items()) if isinstance(value, (str, int, float))]
        return ", ".join(parts)

    def _check_device(self, device: str | None) -> None:
        """The harness passes over a device that it doesn't know, and takes another."""
        if device is None or hasattr(self, "accelerator") or (got := self.device.type) == torch.device(device).type:
            return
        raise InputError(f"the harness knows no device {device!r} and would run on {got}; pass cpu, cuda or cuda:1")

    def render(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt, as the back end writes it, of messages as they are sent."""
        text = super().render(messages, add_generation_prompt)
        if self.keeps_messages:
            self._messages[text] = messages
        return text

    def messages_of(self, text: str) -> list[dict] | None:
        """The messages, as sent, of which a prompt is the rendering or starts with it; None where there are none."""
        return self._messages.get(longest_start(text, self._messages))


def own_arguments(cls: type) -> set[str]:
    """Names of the arguments that our classes add to the harness's."""
    ours = (each for each in cls.__mro__ if each.__module__.startswith("ctxaware.") and "__init__" in vars(each))
    names = {name for each in ours for name in inspect.signature(vars(each)["__init__"]).parameters}
    return names - {"self", "args", "kwargs"}


def refuse_misspelt(cls: type, arguments: dict[str, Any]) -> None:
    """Refuse what would go on to transformers as an option of the model but is nearly one of ours.

    Raises:
        InputError: names the nearest.
    """
    ours, known = own_arguments(cls), set(inspect.signature(HFLM.__init__).parameters)
    for name in set(arguments) - ours - known:
        if near := difflib.get_close_matches(name, ours, n=1, cutoff=0.7):
            raise InputError(f"unknown model argument {name!r}; did you mean {near[0]!r}?")
