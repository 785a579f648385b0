"""Instruction data sets as released → clean conversations, with a count for all that was removed or repaired.

`normalise` is the one function that decides what a sound conversation is; training uses it too.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ctxaware.errors import InputError

ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard"), "assistant"),
    "system": "system",
}

# What is counted, with its meaning: the keys of `removed_or_repaired` in statistics.json.
COUNTS = {
    "html_cleaned": "messages turned from HTML into Markdown",
    "invalid_characters": "messages with half a surrogate pair, replaced by U+FFFD",
    "unknown_roles": "messages of a role that is none of " + ", ".join(ROLES),
    "misplaced_system_messages": "system messages after the first message",
    "null_messages": "messages whose content is not text; the conversation is cut before",
    "empty_messages": "messages without text; the conversation is cut before",
    "leading_assistant_turns": "assistant messages before the first instruction",
    "out_of_order_roles": "conversations cut where the same role comes twice",
    "unanswered_instructions": "instructions at the end without a response",
    "refusals": "instructions removed with a response that refuses",
    "empty_conversations": "conversations with no instruction left",
    "duplicates": "conversations with the same messages as an earlier one",
    "ids_made_unique": "ids that came twice, told apart by #2, #3, …",
}

# A response that opens like one of REFUSALS refuses: the usual phrases of the unfiltered releases, anchored at the
# start, so that what quotes one of them further on stays.
_REGRET = "|".join(
    (r"(?:i['’]?m|i am|we['’]?re) (?:\w+ )?sorry", r"sorry", r"(?:my )?apologies", r"i apologi[sz]e", r"unfortunately")
)
_OPENING = rf"(?:(?:{_REGRET})\b[^.!?\n]{{0,60}}?[,.;:—-]?\s*)?(?:(?:but|however|that),? )?"
_AS_AI = (
    r"as an? (?:responsible |helpful )?(?:text[- ]based |large )?"
    r"(?:ai|artificial intelligence|language model|model|machine)\b"
)
_CANNOT = (
    r"(?:i|we)\s+(?:can['’]?t|cannot|can not|am not able to|am unable to|won['’]?t|will not|must (?:decline|refuse))\b"
)
_LACKS = r"(?:i|we)\s+(?:do not|don['’]?t)\s+(?:have|possess|experience|feel|hold)\b"
_IS_WRONG = r"it (?:is|would be|['’]s) (?:not |in|un)(?:appropriate|ethical|possible)"
_ASKED = (
    r"(?:assist|help|provide|fulfil+|comply|complete|generate|create|write|produce|answer|respond|discuss|engage|"
    r"access|browse|open|view|see|watch|listen|share|support|participate|continue|offer|give|do that|do this|perform|"
    r"predict|promote|recommend|condone|process|reproduce|display|show|have|express|feel|experience)\b"
)
REFUSALS = (
    rf"{_OPENING}{_CANNOT}(?:\s+\w+){{0,2}}?\s+{_ASKED}",  # I'm sorry, but I can't help with that
    rf"{_OPENING}{_AS_AI}[^.!?\n]{{0,80}}?\s*(?:{_CANNOT}|{_LACKS}|{_IS_WRONG}|i am not (?:able|capable|programmed))",
    rf"{_OPENING}{_AS_AI}[^.!?\n]{{0,40}}?\s*my (?:purpose|programming)",  # As an AI, my purpose is to …
    rf"{_IS_WRONG} (?:for me )?to (?:provide|write|generate|create|discuss|share)",
    rf"{_CANNOT}\s*[,.]?\s*{_AS_AI}",
)
_REFUSAL = re.compile("|".join(REFUSALS), re.IGNORECASE)


def is_refusal(response: str) -> bool:
    """The response opens with one of the phrases in `REFUSALS`; mentioning one further on is no refusal."""
    return _REFUSAL.match(response.lstrip(" \t\n\"'*“‘")) is not None


_BLOCK = "p|div|pre|ul|ol|table|h[1-6]|blockquote"
_HTML_EXPORT = re.compile(rf"\s*<(?:{_BLOCK})(?:\s[^<>]*)?>.*</(?:{_BLOCK}|li|span|a)>\s*", re.IGNORECASE | re.DOTALL)


def is_html(text: str) -> bool:
    """The whole text is HTML, as ShareGPT exported responses; Markdown that shows or mentions tags is not."""
    return _HTML_EXPORT.fullmatch(text) is not None


def html_to_markdown(text: str) -> str:
    """HTML as ShareGPT exported it → Markdown, with Vicuna's steps (FastChat's `clean_sharegpt.py`)."""
    from markdownify import markdownify

    text = re.sub(r"<(?:div|span).*?>", "", text)  # keeps indents and underscores in code as they are
    text = markdownify(text).strip()
    text = re.sub(r"```\s*(.*?)(?:Copy code)+(.+?)\s*?```", r"```\1\n\2\n```", text, flags=re.DOTALL)
    text = re.sub(r"\A\d+ / \d+", "", text)  # which of several answers was shown
    text = re.sub(r"Copy\d+ chars / \d+ words", "", text)
    text = re.sub(r"```(.*?)Copy code\s*```", "", text)
    return text.replace("\n\n\n", "\n").strip()


def normalise(messages: Iterable, counts: Counter, *, remove_refusals: bool = False) -> list[dict]:
    """A sound conversation: perhaps a system message, then instruction, response, instruction, response, …

    Args:
        messages: dicts with `role` and `content`, or ShareGPT's `from` and `value`.
        counts: what was removed or repaired is added here, under the keys of `COUNTS`.
        remove_refusals: leave out each instruction whose response refuses.

    Returns:
        Messages with `role` (system, user, assistant) and `content`; empty where no instruction is left.
    """
    clean: list[dict] = []
    for message in _cleaned(messages, counts):
        role = message["role"]
        last = clean[-1]["role"] if clean else None
        if role == "system":
            if clean:
                counts["misplaced_system_messages"] += 1
                continue
        elif role == "assistant" and last in (None, "system"):
            counts["leading_assistant_turns"] += 1
            continue
        elif role == last:
            counts["out_of_order_roles"] += 1
            break  # what follows may depend on what is missing here
        clean.append(message)
    if clean and clean[-1]["role"] == "user":
        counts["unanswered_instructions"] += 1
        clean.pop()
    head = clean[:1] if clean and clean[0]["role"] == "system" else []
    pairs = list(zip(clean[len(head) :: 2], clean[len(head) + 1 :: 2], strict=True))
    if remove_refusals:
        kept = [(user, assistant) for user, assistant in pairs if not is_refusal(assistant["content"])]
        counts["refusals"] += len(pairs) - len(kept)
        pairs = kept
    return head + [message for pair in pairs for message in pair] if pairs else []


def _cleaned(messages: Iterable, counts: Counter) -> Iterator[dict]:
    """Messages of known roles with text, up to the first one without."""
    raw = [m if isinstance(m, dict) else {} for m in (messages if isinstance(messages, (list, tuple)) else [])]
    pairs = [(m.get("role", m.get("from")), m.get("content", m.get("value"))) for m in raw]
    was_exported = any(
        ROLES.get(str(role).lower()) == "assistant" and isinstance(text, str) and is_html(text) for role, text in pairs
    )
    for role, content in pairs:
        role = ROLES.get(str(role).lower())
        if role is None:
            counts["unknown_roles"] += 1
            continue
        if not isinstance(content, str):
            counts["null_messages"] += 1
            return
        if was_exported and is_html(content):
            content = html_to_markdown(content)
            counts["html_cleaned"] += 1
        if any("\ud800" <= c <= "\udfff" for c in content):
            content = content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            counts["invalid_characters"] += 1
        if not content.strip():
            counts["empty_messages"] += 1
            if role == "system":  # it says nothing, and nothing depends on it
                continue
            return
        yield {"role": role, "content": content}


@dataclass(frozen=True)
class InstructionDataset:
    """Where a data set is and what its records look like.

    Attributes:
        messages: a record's messages, or None where the record has none.
        hub: the hub name that `hub` stands for, and its split.
        file: a glob of the file inside a folder of the release.
        remove_refusals: as the paper did for it.
    """

    messages: Callable[[dict], list | None]
    hub: str | None = None
    split: str = "train"
    file: str | None = None
    remove_refusals: bool = False


def _messages(record: dict) -> list | None:
    return record.get("messages", record.get("conversations", record.get("items")))


def _wizardlm(record: dict) -> list | None:
    if "instruction" not in record:
        return _messages(record)
    instruction = "\n".join(filter(None, [record["instruction"], record.get("input")]))
    return [{"role": "user", "content": instruction}, {"role": "assistant", "content": record.get("output")}]


DATASETS = {
    "sharegpt": InstructionDataset(
        _messages, "ucla-cmllab/vicuna_cleaned", file="ShareGPT*split.json", remove_refusals=True
    ),
    "ultrachat": InstructionDataset(
        _messages, "HuggingFaceH4/ultrachat_200k", split="train_sft", file="**/train_sft-*.parquet"
    ),
    "wizardlm": InstructionDataset(
        _wizardlm, "WizardLMTeam/WizardLM_evol_instruct_70k", file="alpaca_evol_instruct_70k.json", remove_refusals=True
    ),
    "messages": InstructionDataset(_messages),
}


def clean(records: Iterable[dict], dataset: str, counts: Counter) -> Iterator[dict]:
    """Clean conversations with unique ids from the records of a release.

    Args:
        records: as released.
        dataset: a key of `DATASETS`.
        counts: as in `normalise`.

    Raises:
        InputError: the first record is of another shape.
    """
    spec, seen, ids = DATASETS[dataset], set(), set()
    for number, record in enumerate(records):
        messages = spec.messages(record) if isinstance(record, dict) else None
        if number == 0 and messages is None:
            found = sorted(record) if isinstance(record, dict) else type(record).__name__
            raise InputError(f"expected records of {dataset} ({_SHAPES[dataset]}), got {found}; pass another --dataset")
        messages = normalise(messages or [], counts, remove_refusals=spec.remove_refusals)
        if not messages:
            counts["empty_conversations"] += 1
            continue
        digest = hashlib.blake2b(json.dumps(messages).encode(), digest_size=16).digest()
        if digest in seen:
            counts["duplicates"] += 1
            continue
        seen.add(digest)
        yield {"id": _unique_id(record, dataset, number, ids, counts), "messages": messages}


_SHAPES = {
    "sharegpt": "id and conversations with from and value, or messages",
    "ultrachat": "messages",
    "wizardlm": "instruction and output",
    "messages": "messages with role and content",
}


def _unique_id(record: dict, dataset: str, number: int, ids: set, counts: Counter) -> str:
    given = next((str(record[k]) for k in ("id", "prompt_id", "idx") if record.get(k) is not None), None)
    name = given or f"{dataset}-{number}"
    copy = 1
    while name in ids:
        copy += 1
        name = f"{given or dataset}#{copy}"
    if given is not None and copy > 1:
        counts["ids_made_unique"] += 1
    ids.add(name)
    return name
