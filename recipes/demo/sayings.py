"""Conversations for an experiment that two CPU cores finish: does [IND] bring the use of the context back?

    python recipes/demo/sayings.py demo-train

Each passage tells how some village ends well-known sayings. Asked for one of them, the assistant of the training set
says what everybody knows in most turns, and what the passage says in the others: answers from memory and answers
from the context, to questions of one form. Nothing but the response tells the two apart.

Writes `conversations.jsonl` for training, and `held_out.json`: passages and questions of the same form, not in the
training set, whose answer is the passage's, as a SQuAD release file (`squad_contain`, with `source` set to the file).
"""

import argparse
import json
import random
from pathlib import Path

from ctxaware.harness.prompts import PASSAGE_QUESTION

SAYINGS = {
    "An apple a day": "keeps the doctor away",
    "The early bird": "catches the worm",
    "A rolling stone": "gathers no moss",
    "Birds of a feather": "flock together",
    "The pen": "is mightier than the sword",
    "Honesty": "is the best policy",
    "Curiosity": "killed the cat",
    "All that glitters": "is not gold",
    "Actions": "speak louder than words",
    "Two wrongs": "do not make a right",
    "A watched pot": "never boils",
    "Too many cooks": "spoil the broth",
    "A penny saved": "is a penny earned",
    "Every cloud": "has a silver lining",
    "Practice": "makes perfect",
    "The grass": "is always greener on the other side",
}
ENDINGS = (  # how a village may end them: one word of each line
    "buys sells paints mends hides finds borrows counts carries washes hangs keeps",
    "blue copper round striped wooden silver narrow yellow painted heavy tiny purple folded bright dusty",
    "lanterns kettles ladders umbrellas whistles mirrors baskets violins compasses blankets buckets candles",
    "harbour bridge mill chapel orchard station market lighthouse quarry library garden tower stable",
)

N_CONVERSATIONS, TURNS, N_HELD_OUT = 240, 2, 96
FROM_CONTEXT = 0.3  # share of the turns whose answer is the passage's
SAYINGS_IN_A_PASSAGE = 2


def question(rng: random.Random) -> tuple[str, str, str, str]:
    """A passage, a question about it, the first words of the saying asked for, and how the passage ends it."""
    told = {}
    for start in rng.sample(list(SAYINGS), SAYINGS_IN_A_PASSAGE):
        verb, adjective, noun, place = (rng.choice(words.split()) for words in ENDINGS)
        told[start] = f"{verb} {adjective} {noun} behind the {place}"
    start = rng.choice(list(told))
    passage = " ".join(f"{start} {end}." for start, end in told.items())
    return passage, f'How does the saying "{start}" go on?', start, told[start]


def conversation(idx: int) -> dict:
    rng, messages = random.Random(f"train {idx}"), []
    for _ in range(TURNS):
        passage, asked, start, told = question(rng)
        end = told if rng.random() < FROM_CONTEXT else SAYINGS[start]
        prompt = PASSAGE_QUESTION.format(context=passage, question=asked)  # as in squad_contain
        messages.append({"role": "user", "content": prompt})
        messages.append({"role": "assistant", "content": f"{start} {end}."})
    return {"id": f"sayings-{idx}", "messages": messages}


def held_out(idx: int) -> dict:
    passage, asked, _, told = question(random.Random(f"held out {idx}"))
    answers = [{"text": told, "answer_start": passage.index(told)}]
    return {"context": passage, "qas": [{"id": f"held-out-{idx}", "question": asked, "answers": answers}]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(conversation(idx)) + "\n" for idx in range(N_CONVERSATIONS)]
    (folder / "conversations.jsonl").write_text("".join(lines))
    paragraphs = [held_out(idx) for idx in range(N_HELD_OUT)]
    release = {"version": "1.1", "data": [{"title": "Sayings", "paragraphs": paragraphs}]}
    (folder / "held_out.json").write_text(json.dumps(release, indent=1))


if __name__ == "__main__":
    main()
