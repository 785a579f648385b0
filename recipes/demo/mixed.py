"""Conversations in which passages and plain questions mix: can a model tell which of them needs its context?

    python recipes/demo/mixed.py demo-auto

As in sayings.py, each passage tells how some village ends well-known sayings, and the assistant answers from it; now
and then it says what everybody knows instead. More turns ask for a saying without any passage, and what everybody knows
is all that there is to say. So the prompt shows nearly always whether its answer is in the context.

Writes `conversations.jsonl` for training, `unseen.jsonl` of the same kind for `ctxaware auto fit`, and `held_out.json`
for `squad_contain` and `ctxaware auto evaluate`, as sayings.py does.
"""

import argparse
import json
import random
from pathlib import Path

from sayings import N_HELD_OUT, SAYINGS, held_out, question

from ctxaware.harness.prompts import PASSAGE_QUESTION

PLAIN = (
    'How does the saying "{start}" go on?',
    'Please finish the saying "{start}".',
    'Which words follow "{start}" in the proverb?',
    'What do people say after "{start}"?',
    'Do you know how the proverb "{start}" ends?',
)

N_CONVERSATIONS, N_UNSEEN, TURNS = 160, 80, 2
WITH_PASSAGE = 0.4  # share of the turns
FROM_MEMORY = 0.1  # share of these whose answer is not the passage's


def conversation(name: str) -> dict:
    rng, messages = random.Random(f"mixed {name}"), []
    for _ in range(TURNS):
        passage, asked, start, told = question(rng)
        has_passage = rng.random() < WITH_PASSAGE
        end = told if has_passage and rng.random() >= FROM_MEMORY else SAYINGS[start]
        plain = rng.choice(PLAIN).format(start=start)
        prompt = PASSAGE_QUESTION.format(context=passage, question=asked) if has_passage else plain
        messages.append({"role": "user", "content": prompt})
        messages.append({"role": "assistant", "content": f"{start} {end}."})
    return {"id": f"mixed-{name}", "messages": messages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for file, part, n in (("conversations", "train", N_CONVERSATIONS), ("unseen", "unseen", N_UNSEEN)):
        lines = [json.dumps(conversation(f"{part}-{idx}")) + "\n" for idx in range(n)]
        (folder / f"{file}.jsonl").write_text("".join(lines))
    paragraphs = [held_out(idx) for idx in range(N_HELD_OUT)]
    release = {"version": "1.1", "data": [{"title": "Sayings", "paragraphs": paragraphs}]}
    (folder / "held_out.json").write_text(json.dumps(release, indent=1))


if __name__ == "__main__":
    main()
