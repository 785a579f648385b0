"""`indicator=auto`: the model itself decides of each prompt whether `[IND]` goes on its last user message.

The prompt is computed once: the decision is read where the plain and the marked rendering part, and the one that is
sent goes on from the keys and values that are there. What is computed again is at most what follows the user's message.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ctxaware.auto.fork import Fork, check_prompt, make_fork
from ctxaware.auto.indicator import AutoIndicator, beside, load_auto_indicator
from ctxaware.auto.methods import Head, see
from ctxaware.errors import InputError
from ctxaware.harness.indicator import IndicatorMixin
from ctxaware.harness.internals import add_to_samples, keep_answer, kept_answer, one_line_in_lm_eval, refuse_kept
from ctxaware.indicator.marking import AUTO, NEVER, mark_messages, without_indicator
from ctxaware.indicator.token import indicator_id
from ctxaware.prefix_cache import ModelCall, Prompt, read_whole

if TYPE_CHECKING:
    from ctxaware.harness.hf import PrefixReuseLM as _Base

    class _Marks(IndicatorMixin, _Base): ...
else:
    _Marks = IndicatorMixin

_KEPT = "indicator_auto"  # the name under which decisions are kept among answers


@dataclass(frozen=True)
class Rendering:
    """A prompt that can get the mark.

    Attributes:
        messages: without marks on the last user message, the beginning of an answer at the end included.
        selected: which user messages carry a mark that the task put there.
        is_begun: whether an answer is begun.
        is_marked: the task itself marked the last user message: nothing is left to decide.
    """

    messages: list[dict]
    selected: list[bool]
    is_begun: bool
    is_marked: bool


class AutoMixin(_Marks):
    """The indicator, also where the model decides of prompts while they are computed. Stands before `PrefixReuseLM`.

    Args:
        indicator: one of `marking.MODES`.
        indicator_threshold: `[IND]` where the probability is above it; None for the one that was fitted.

    Raises:
        InputError: the model has no automatic indicator, or one of other weights or another tokenizer.
    """

    can_decide = True

    def __init__(
        self, *args: Any, indicator: str = NEVER, indicator_threshold: float | None = None, **kwargs: Any
    ) -> None:
        self._renderings: dict[str, Rendering] = {}  # by the plain prompt
        self._forks: dict[str, tuple[Fork, list[Head], str]] = {}  # and the marked prompt
        self.decisions: dict[str, tuple[float | None, bool]] = {}  # by the plain prompt: p, and whether it got [IND]
        self._auto: AutoIndicator | None = None  # while `indicator` is auto
        self._fitted: AutoIndicator | None = None
        self._checked: Any = None  # the harness's file of kept answers
        with one_line_in_lm_eval():
            found = None
            if indicator != AUTO and indicator_threshold is not None:
                raise InputError("indicator_threshold goes with indicator=auto")
            if indicator == AUTO and kwargs.get("steer_alpha") not in (None, 1):
                raise InputError("indicator=auto and steer_alpha don't go together; leave one of them out")
            name, adapter = kwargs.get("pretrained", args[0] if args else None), kwargs.get("peft")
            if indicator == AUTO and isinstance(name, str):  # before the model is loaded
                revision = kwargs.get("revision")
                own = (adapter, None, name, revision) if adapter else (name, revision)
                found = load_auto_indicator(*own)
            super().__init__(*args, indicator=indicator, **kwargs)
            if indicator == AUTO:
                found = found or beside(self.model, self.tokenizer)
                found.check_tokenizer(self.tokenizer)
                self._fitted = self._auto = found.with_threshold(indicator_threshold)

    def mark(self, mode: str) -> None:
        """Mark prompts in another way from now on: one of `marking.MODES`; auto only where it began so."""
        if mode == AUTO and self._fitted is None:
            raise InputError("this model was loaded without its automatic indicator; pass indicator=auto")
        self.indicator, self._auto = mode, self._fitted if mode == AUTO else None

    def set_steering(self, alpha: float, heads: Any) -> None:
        """As the base; refused beside `indicator=auto`."""
        if self._auto and alpha < 1:
            raise InputError("indicator=auto and steering don't go together; leave one of them out")
        super().set_steering(alpha, heads)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The plain prompt; what is needed to mark it is remembered. `[IND]` typed in a message is ordinary text."""
        if self.cache_hook is not self._checked:  # prompts are the same whatever `auto` decides or steering moves
            self._checked = self.cache_hook
            marking = f"indicator={AUTO} {self._auto.model} {self._auto.threshold}" if self._auto else None
            with one_line_in_lm_eval():
                refuse_kept(self.cache_hook, "indicator or steering", marking or self.steered_as())
        if not self._auto:
            return super().apply_chat_template(chat_history, add_generation_prompt)
        add_to_samples(self._of_sample)
        messages = [{**message, "content": without_indicator(message["content"])} for message in chat_history]
        pairs = zip(chat_history, messages, strict=True)
        selected = [old["content"] != new["content"] for old, new in pairs if new["role"] == "user"]
        is_begun = not add_generation_prompt and messages[-1]["role"] == "assistant"
        with one_line_in_lm_eval():
            check_prompt(messages[:-1] if is_begun else messages)
        text = self.render(mark_messages(messages, selected), add_generation_prompt)
        self._renderings[text] = Rendering(messages, selected, is_begun, selected[-1])
        return text

    def carries_indicator(self, prompt: str) -> bool:
        """Whether a prompt has its mark, or can get one."""
        return bool(self._start(prompt)) if self._auto else super().carries_indicator(prompt)

    def planned(self, prompt: Prompt) -> Prompt:
        """What both renderings of a prompt begin with, as far as it is looked at."""
        start = self._start(prompt.text) if self._auto else ""
        if not start or self._renderings[start].is_marked:
            return super().planned(prompt)
        return self._head(start)[1][0].prompt

    def settled(self, texts: list[str]) -> list[str]:
        """Prompts as they are sent; the model is seen on their beginnings now, and goes on from there later."""
        if not self._auto:
            return super().settled(texts)
        starts = [self._start(text) for text in texts]
        with one_line_in_lm_eval():
            self._decide(
                list(dict.fromkeys(start for start in starts if start and not self._renderings[start].is_marked))
            )
        sent = []
        for text, start in zip(texts, starts, strict=True):
            goes_on = self.decisions.get(start, (None, False))[1] and not self._renderings[start].is_marked
            sent.append(self._head(start)[2] + text[len(start) :] if goes_on else text)
        return sent

    def _start(self, text: str) -> str:
        """The rendering that a prompt is or begins with; "" where it is of none."""
        return longest_start(text, self._renderings)

    def _decide(self, starts: list[str]) -> None:
        assert self._auto is not None
        heads = [(start, head) for start in starts for head in self._head(start)[1]]
        if not heads:
            return
        seen = self._see([head for _, head in heads])
        log_odds = dict.fromkeys(starts, 0.0)
        for (start, head), each in zip(heads, seen, strict=True):
            log_odds[start] += self._auto.method.log_odds(head, each)
        for start in starts:
            if start not in self.decisions:
                p = self._auto.probability(log_odds[start])
                self.decisions[start] = p, self._auto.is_marked(p)
                keep_answer(self, _KEPT, (start,), list(self.decisions[start]))

    def _see(self, heads: list[Head]) -> list[Any]:
        """What the model shows at the ends of heads, whose keys and values are kept where prefixes are reused."""
        assert self._auto is not None
        layers = self._auto.method.layers
        if self._cache is not None:
            with self._going_on_without_cache(), self._autocast():
                return see(self.model, heads, layers, self._cache.read)
        return [see(self.model, [head], layers, self._read_whole)[0] for head in heads]

    def _read_whole(self, prompts: list[Prompt]) -> list[torch.Tensor]:
        (prompt,) = prompts
        self.n_prompt_tokens["computed"] += len(prompt.input_ids)
        input_ids = torch.tensor([prompt.input_ids], device=self.device)
        with self._autocast(), self.around_call(ModelCall(input_ids, torch.ones_like(input_ids), (prompt,))):
            return read_whole(self.model, prompts)

    def _head(self, start: str) -> tuple[Fork, list[Head], str]:
        """Where a prompt's two renderings part, what has to be seen of it, and the marked prompt."""
        if start not in self._forks:
            assert self._auto is not None
            of, encode = self._renderings[start], functools.partial(self.tok_batch_encode, truncation=self.truncation)
            asked = of.messages[:-1] if of.is_begun else of.messages  # the slot comes before an answer that is begun
            flags = [of.selected, [*of.selected[:-1], True]]
            texts = [self.render(mark_messages(asked, selected)) for selected in flags]
            with one_line_in_lm_eval():
                plain, marked_ids = (encode([text])[0][0].tolist() for text in texts)
                fork = make_fork(plain, marked_ids, indicator_id(self.tokenizer))
            marked = self.render(mark_messages(of.messages, flags[1]), not of.is_begun) if of.is_begun else texts[1]
            heads = [head._replace(prompt=self._cut(head.prompt)) for head in self._auto.method.heads(fork)]
            self._forks[start] = fork, heads, marked
        return self._forks[start]

    def _cut(self, prompt: Prompt) -> Prompt:
        """A head within the window, cut on the left as the harness cuts prompts."""
        return Prompt(prompt.input_ids[-self.max_length :], prompt.text, prompt.n_scored)

    def decision(self, prompt: str) -> tuple[float | None, bool | None]:
        """What was decided of a prompt as the task made it: p, None where nothing was; and whether it got `[IND]`."""
        start = self._start(prompt)
        if not self._auto or (start and self._renderings[start].is_marked):
            return None, self.carries_indicator(prompt) if self.indicator != AUTO else True
        p, is_marked = self.decisions.get(start) or kept_answer(self, _KEPT, (start,)) or (None, None)
        return p, is_marked

    def _of_sample(self, prompt: str) -> dict[str, Any]:
        """What a sample says of its prompt."""
        return dict(zip(("indicator_probability", "indicator"), self.decision(prompt), strict=True))

    def get_model_info(self) -> dict[str, Any]:
        """What the results file says of the model."""
        info = super().get_model_info()
        if not self._auto:
            return info
        marked = [is_marked for _, is_marked in self.decisions.values()]
        counts = {"decided": len(marked), "marked": sum(marked)}
        return {**info, "auto_indicator": {**self._auto.describe(), **counts}}


def longest_start(text: str, starts: Iterable[str]) -> str:
    """The longest of some texts that `text` is or starts with; "" where there is none."""
    return text if text in starts else max(filter(text.startswith, starts), key=len, default="")
