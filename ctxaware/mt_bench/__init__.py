"""MT-Bench: answers (`answers`), FastChat's judge (`judge`), the summary (`summary`).

Everything lies under one folder, in FastChat's own layout and formats, with what FastChat doesn't know beside it:

    OUT/model_answer/NAME.jsonl                     one question a line, both turns
    OUT/model_answer/NAME.manifest.json             settings and hashes that a resume must match, versions
    OUT/model_judgment/JUDGE_single.jsonl           one judgment with a usable rating a line
    OUT/model_judgment/JUDGE_single.manifest.json
    OUT/failures/…/*.jsonl                          every call that gave no answer or no usable rating
"""
