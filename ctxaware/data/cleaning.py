"""What a sound conversation is: roles, HTML remnants, empty messages; all repairs are counted."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from ctxaware.data.refusals import is_refusal
from ctxaware.runs.files import is_text

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


def replace_half_pairs(text: str) -> str:
    """`text` with U+FFFD for each half of a surrogate pair, and whole pairs as the character they stand for."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


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
        if not is_text(content):
            content = replace_half_pairs(content)
            counts["invalid_characters"] += 1
        if not content.strip():
            counts["empty_messages"] += 1
            if role == "system":  # it says nothing, and nothing depends on it
                continue
            return
        yield {"role": role, "content": content}
