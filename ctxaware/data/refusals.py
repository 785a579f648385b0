"""Responses that refuse, by the usual phrases of the unfiltered releases."""

import re

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
