"""`indicator=…` for the harness's models: `[IND]` on the user messages of any task, whatever the back end."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ctxaware.chat import template_errors
from ctxaware.errors import InputError
from ctxaware.harness.internals import keep_as_json, one_line_in_lm_eval, uses_chat_template
from ctxaware.indicator.marking import ALWAYS, AUTO, MODES, NEVER, mark_messages, without_indicator
from ctxaware.indicator.token import INDICATOR, indicator_id

if TYPE_CHECKING:
    from lm_eval.api.model import TemplateLM as BackEnd
else:
    BackEnd = object


class IndicatorMixin(BackEnd):
    """Marks user messages where the harness applies the chat template. Stands before the back end's class.

    Args:
        indicator: `never` leaves prompts as the task makes them; `always` puts the indicator on every user
            message, as in training, those of few-shot turns included; `auto`, where the class can (`can_decide`),
            lets the model decide of the last user message.

    Raises:
        InputError: another `indicator`, or the tokenizer has no `[IND]`.
    """

    can_decide = False

    def __init__(self, *args: Any, indicator: str = NEVER, **kwargs: Any):
        with one_line_in_lm_eval():
            if indicator not in MODES:
                raise InputError(f"indicator must be one of {', '.join(MODES)}, got {indicator!r}")
            if indicator == AUTO and not self.can_decide:
                raise InputError(
                    "indicator=auto reads what the model shows while it computes a prompt, which only the harness's "
                    "model ctxaware does; pass indicator=always or never here"
                )
            self.indicator = indicator
            super().__init__(*args, **kwargs)
            if indicator != NEVER:
                indicator_id(self.tokenizer)

    def select_turns(self, messages: Sequence[dict]) -> list[bool]:
        """Which user messages carry the indicator, one entry each, in order."""
        return [self.indicator == ALWAYS for message in messages if message["role"] == "user"]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt, with the indicator on the messages of `select_turns`; a mark that a task put there stays one."""
        selected = self.select_turns(chat_history)
        if any(selected):
            plain = [{**message, "content": without_indicator(message["content"])} for message in chat_history]
            chat_history = mark_messages(plain, selected)
        return self.render(chat_history, add_generation_prompt)

    def render(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt of messages as they are sent, by the back end's own method.

        Raises:
            InputError: the chat template is broken, or not done after `chat.RENDERING_SECONDS`.
        """
        with one_line_in_lm_eval(), template_errors(refusals=False):  # a refused system message is left out
            return super().apply_chat_template(messages, add_generation_prompt)

    def set_cache_hook(self, cache_hook: Any) -> None:
        """As the back end, with answers kept as JSON (`use_cache`)."""
        keep_as_json(cache_hook)
        super().set_cache_hook(cache_hook)

    @property
    def tokenizer_name(self) -> str:
        """The name under which the harness keeps prompts (`--cache_requests`): marked ones apart."""
        name = super().tokenizer_name
        return name if self.indicator == NEVER else f"{name}-indicator-{self.indicator}"

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        """As the back end, refusing prompts that can't carry the indicator."""
        self._require_marks([request.args[0] for request in requests])
        return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def loglikelihood(self, requests: list, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As the back end, refusing contexts that can't carry the indicator (an empty one has no user)."""
        self._require_marks([request.args[0] for request in requests if request.args[0]])
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        """As the back end; whole texts have no user message."""
        if requests:
            self._require_marks([""])
        return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)

    def carries_indicator(self, prompt: str) -> bool:
        """Whether a prompt has its mark, or can get one."""
        return INDICATOR in prompt

    def _require_marks(self, prompts: Sequence[str]) -> None:
        if self.indicator == NEVER or not prompts:
            return
        with one_line_in_lm_eval():
            unmarked = sum(not self.carries_indicator(prompt) for prompt in prompts)
            if uses_chat_template() is False or unmarked == len(prompts):
                raise InputError(
                    f"indicator={self.indicator} marks user messages, and these {len(prompts)} prompts did not go "
                    "through the chat template; set apply_chat_template, or leave indicator out"
                )
            if unmarked:
                raise InputError(
                    f"indicator={self.indicator}: {unmarked} of {len(prompts)} prompts carry no {INDICATOR}, so the "
                    "chat template drops user messages, or the task sends other text"
                )

    def get_model_info(self) -> dict[str, Any]:
        """What the results file says of the model."""
        info: dict[str, Any] = getattr(super(), "get_model_info", dict)()
        return {**info, "indicator": self.indicator}
