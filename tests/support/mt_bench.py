"""A small MT-Bench of our own, in FastChat's layout, and answers to it."""

import json
from dataclasses import fields

from ctxaware.mt_bench import answers, judge
from ctxaware.mt_bench.endpoint import EndpointSettings
from support import tiny

QUESTIONS = [
    {"question_id": 1, "category": "writing", "turns": ["Write one line about the sea.", "Now make it rhyme."]},
    {"question_id": 2, "category": "math", "turns": ["What is 6 times 7?", "And if both are one more?"]},
    {"question_id": 3, "category": "stem", "turns": ["Why is ice lighter than water?", "Say it to a child"]},
    {"question_id": 4, "category": "extraction", "turns": ["Name the fruit: a red apple fell.", "Its colour?"]},
]
REFERENCES = [{"question_id": 2, "choices": [{"index": 0, "turns": ["42", "56"]}]}]
_RATE = 'Rate from 1 to 10 as "[[rating]]", for example: "Rating: [[5]]".\n\n'
_TWO = "User: {question_1}\nAssistant: {answer_1}\nUser: {question_2}\nAssistant: {answer_2}\n"
PROMPTS = {
    "single-v1": _RATE + "Question: {question}\nAnswer: {answer}",
    "single-math-v1": _RATE + "Question: {question}\nReference: {ref_answer_1}\nAnswer: {answer}",
    "single-v1-multi-turn": _RATE + _TWO,
    "single-math-v1-multi-turn": _RATE + "Reference: {ref_answer_1} then {ref_answer_2}\n" + _TWO,
}


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


N = 2 * len(QUESTIONS)  # judgments a model


def write_data(folder):
    """Questions, a reference answer and judge prompts, as FastChat keeps them; returns `folder`."""
    write_jsonl(folder / "mt_bench" / "question.jsonl", QUESTIONS)
    write_jsonl(
        folder / "mt_bench" / "reference_answer" / "gpt-4.jsonl",
        REFERENCES,
    )
    prompt = {"type": "single", "system_prompt": "You are a judge.", "output_format": "[[rating]]"}
    write_jsonl(
        folder / "judge_prompts.jsonl",
        [{**prompt, "name": name, "prompt_template": text} for name, text in PROMPTS.items()],
    )
    return folder


def write_answers(out, model_id="m", **changes):
    """Answers as FastChat writes them; `changes` are finish reasons or texts by question id."""
    rows = []
    for question in QUESTIONS:
        i = question["question_id"]
        choice = {"index": 0, "turns": changes.get(f"q{i}", [f"{model_id} {i} first", f"{model_id} {i} second"])}
        row = {"question_id": i, "answer_id": f"a{i}", "model_id": model_id, "choices": [choice], "tstamp": 1.0}
        rows.append(row)
    write_jsonl(out / "model_answer" / f"{model_id}.jsonl", rows)


def is_first_turn_of_3(body):
    prompt = body["messages"][-1]["content"]
    return prompt.startswith(PROMPTS["single-v1"].split("Question")[0] + "Question: Why is ice")


def tiny_model(tokenizer, window=2048):
    return tiny.tiny_llama(
        len(tokenizer) + 8,  # rows to spare, as many checkpoints have
        max_position_embeddings=window,
        initializer_range=0.3,  # so that the next token depends on the text
    )


def _endpoint(options):
    names = [field.name for field in fields(EndpointSettings)]
    return EndpointSettings(**{name: options.pop(name) for name in names if name in options})


def run_answer(model, model_id, data_dir, out, **options):
    """`answer`, with the fields of both data classes as keyword arguments."""
    endpoint = _endpoint(options) if "base_url" in options else None
    return answers.answer(answers.AnswerRun(model, model_id, data_dir, out, endpoint=endpoint, **options))


def run_judge(out, data_dir, judge_model, model_ids=None, **options):
    """`judge`, with the fields of both data classes as keyword arguments."""
    return judge.judge(judge.JudgeRun(out, data_dir, judge_model, model_ids, _endpoint(options)))
