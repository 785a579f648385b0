"""A file of scores as `ctxaware score` writes it, with scores of our choice."""

from ctxaware.data.conversations import fingerprint_messages
from ctxaware.scores import shards
from ctxaware.scores.formula import TurnScore

CONVERSATIONS = [
    {"id": f"c{i}", "messages": [{"role": r, "content": f"{r} {i}"} for r in ("user", "assistant") * (1 + i % 2)]}
    for i in range(10)
]
SCORE = {("c0", 0): 0.61, ("c1", 0): 0.55, ("c1", 1): 0.85, ("c3", 1): None, ("c5", 0): 0.71}


def write_scores(path, layers=(15,), drop=(), conversations=CONVERSATIONS, score=None):
    """Write them; `score` gives one by id, turn and layer, in place of those above."""
    manifest = shards.Manifest("chats.jsonl", "", len(conversations), "m", None, "", list(layers), 1, 1, "", "", {})
    turns = [
        TurnScore(c["id"], turn, layer, (score or _score)(c["id"], turn, layer), 5, 10 * (turn + 1))
        for c in conversations
        if c["id"] not in drop
        for turn in range(len(c["messages"]) // 2)
        for layer in layers
    ]
    fingerprints = {c["id"]: fingerprint_messages(c["messages"]) for c in conversations}
    shards._write_tables(path, [shards._table(turns, fingerprints, manifest)], {}, manifest)
    return path


def _score(name, turn, layer):
    score = SCORE.get((name, turn), 0.1)
    return score if score is None or layer == 15 else 1 - score
