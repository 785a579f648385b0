"""Fitting on turns with scores: figures against plain formulas, what is held out, and the command's files."""

import json
import re
import sys

import numpy as np
import pytest
from support.auto import model_for, save_model, tokenizer_with_indicator

from ctxaware import load_auto_indicator
from ctxaware.auto import fit as fitting
from ctxaware.auto.calibration import Calibration, auroc, error_by_chance, fit_calibration, reliability
from ctxaware.auto.fit import fit, labelled_turns, measure
from ctxaware.auto.fork import fork_messages
from ctxaware.auto.indicator import read_log_odds
from ctxaware.auto.kept import Kept, kept_beside
from ctxaware.auto.methods import Slot
from ctxaware.auto.run import FitRun, fit_model
from ctxaware.errors import InputError
from ctxaware.indicator.token import indicator_id


def drawn(n, seed=0):
    """Log-odds and what came of them, as often as a logistic curve says."""
    rng = np.random.default_rng(seed)
    log_odds = rng.normal(-1, 2, n)
    return log_odds, rng.random(n) < 1 / (1 + np.exp(-(1.5 * log_odds - 0.5)))


@pytest.mark.parametrize(("n", "kind"), [(999, "platt"), (1000, "isotonic")])
def test_a_calibration_is_scikit_learn_s_kept_as_a_few_numbers(n, kind):
    from sklearn.isotonic import IsotonicRegression
    from sklearn.linear_model import LogisticRegression

    log_odds, is_positive = drawn(n)
    found = fit_calibration(log_odds, is_positive)
    again = Calibration.from_json(json.loads(json.dumps(found.to_json())))
    at = np.linspace(-9, 9, 50)
    if kind == "isotonic":
        expected = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(log_odds, is_positive).predict(at)
    else:
        expected = LogisticRegression(C=1e6).fit(log_odds[:, None], is_positive).predict_proba(at[:, None])[:, 1]
        assert found.x[0] == pytest.approx(1.5, abs=0.3)
    assert found.kind == again.kind == kind
    np.testing.assert_allclose(again(at), expected, atol=1e-4)
    assert (np.diff(again(at)) >= 0).all()


def test_parts_with_base_rates_of_their_own_do_not_make_what_says_nothing_worse_than_chance():
    """Log-odds without a message, each part's shifted by the share of positives in the others."""
    rng = np.random.default_rng(0)
    is_positive, parts = rng.random(500) < 0.2, np.arange(500) % 5
    shares = np.array([is_positive[parts != part].mean() for part in range(5)])
    log_odds = rng.normal(0, 0.001, 500) + shares[parts]
    assert auroc(log_odds, is_positive) < 0.45
    assert auroc(log_odds, is_positive, parts) == pytest.approx(0.5, abs=0.05)


def test_a_calibration_never_falls():
    """By chance, or where a model learnt the contrary, it would mark the prompts that need it least."""
    log_odds, is_positive = drawn(200)
    fallen = fit_calibration(-log_odds, is_positive)
    np.testing.assert_allclose(fallen(np.array([-9.0, 0.0, 9.0])), is_positive.mean())


def test_the_calibration_error_is_the_mean_over_prompts_of_what_their_bin_is_off():
    p = np.array([0.02, 0.04, 0.5, 0.51, 0.52, 1.0])
    is_positive = np.array([False, True, True, False, True, True])
    expected = 2 / 6 * abs(0.03 - 0.5) + 3 / 6 * abs(0.51 - 2 / 3) + 1 / 6 * 0
    assert reliability(p, is_positive).error == pytest.approx(expected)
    assert reliability(p, is_positive).n.tolist() == [2, *[0] * 6, 3, *[0] * 6, 1]
    pairs = [(a > b) + (a == b) / 2 for a in p[is_positive] for b in p[~is_positive]]
    assert auroc(p, is_positive) == pytest.approx(np.mean(pairs))
    parts = np.array([0, 0, 0, 1, 1, 1])
    pairs = [
        (p[i] > p[j]) + (p[i] == p[j]) / 2
        for i in np.flatnonzero(is_positive)
        for j in np.flatnonzero(~is_positive)
        if parts[i] == parts[j]
    ]
    assert auroc(p, is_positive, parts) == pytest.approx(np.mean(pairs)) != auroc(p, is_positive)
    with pytest.raises(InputError, match="turns of both kinds, got 6 of 6"):
        auroc(p, np.ones(6, bool))


QUESTIONS = {True: "Where does the keeper of this lamp live?", False: "Say something about the number"}


def scored(n=40, seed=0):
    """Conversations whose prompt shows nearly always whether its turn scores high."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        messages, scores = [], []
        for turn in range(1 + i % 3):
            depends = bool(rng.random() < 0.4)
            messages.append({"role": "user", "content": f"{QUESTIONS[depends]} {i}{turn}"})
            messages.append({"role": "assistant", "content": "Well, well."})
            scores.append(0.9 if depends != (rng.random() < 0.05) else 0.1)
        yield {"id": f"c{i}", "messages": messages}, np.array(scores)


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_with_indicator()


@pytest.fixture(scope="module")
def model(tokenizer):
    return model_for(tokenizer)


def fitted(model, tokenizer, method="probe", **changes):
    turns = labelled_turns(tokenizer, scored(), method, 0.6, 512)
    settings = {"method": method, "layers": [1], "beta": 0.6, "fingerprint": "f", "provenance": {"data": "d"}}
    return turns, *fit(model, tokenizer, turns, **{**settings, **changes})


def test_a_probe_learns_what_a_prompt_shows_and_says_it_of_turns_that_it_did_not_see(model, tokenizer):
    turns, indicator, quality = fitted(model, tokenizer)
    assert quality.n == len(turns.forks) == sum(1 + i % 3 for i in range(40))
    assert quality.auroc_low < quality.auroc < quality.auroc_high
    assert quality.auroc > 0.85
    assert quality.reliability.error < 0.15
    chosen = indicator.fitted["at_its_threshold"]
    assert chosen["recall"] > 2 * chosen["false_alarms"]
    other = labelled_turns(tokenizer, scored(30, seed=9), "probe", 0.6, 512)
    again = measure(indicator, model, other)
    assert again.auroc > 0.85
    prompts = [conversation["messages"][:1] for conversation, _ in scored(30, seed=9)]
    marked = [each.is_marked for each in indicator.decide(model, tokenizer, prompts)]
    asked = [QUESTIONS[True] in messages[0]["content"] for messages in prompts]
    assert np.mean(np.array(marked) == asked) > 0.85


def test_labels_that_have_nothing_to_do_with_the_prompt_are_not_learnt_by_heart(model, tokenizer):
    """With the turns themselves in the fit, the same probe tells them apart."""
    turns = labelled_turns(tokenizer, scored(), "probe", 0.6, 512)
    settings = {"method": "probe", "layers": [0, 1, 2, 3], "beta": 0.6, "fingerprint": "f", "provenance": {}}
    held_out, learnt = [], []
    for seed in range(6):
        turns.scores[:] = np.random.default_rng(seed).random(len(turns.scores))
        indicator, quality = fit(model, tokenizer, turns, **settings)
        held_out.append(quality.auroc)
        learnt.append(measure(indicator, model, turns).auroc)
    assert np.mean(held_out) == pytest.approx(0.5, abs=0.08)
    assert np.mean(learnt) > 0.65


def test_a_slot_is_calibrated_not_trained(model, tokenizer):
    turns, indicator, quality = fitted(model, tokenizer, "slot", layers=[])
    assert indicator.method.name == "slot"
    assert 0.2 < quality.auroc < 0.8  # a model that never learnt it
    own = np.array(read_log_odds(model, Slot(), turns.forks))
    assert quality.auroc == auroc(own, turns.scores > 0.6), "nothing is fitted that could be held out"
    assert quality.reliability.error < 0.15


def test_turns_are_prompts_with_the_marks_of_training_and_what_is_left_out_is_counted(tokenizer):
    mark = indicator_id(tokenizer)
    user, system, assistant = ({"role": role, "content": f"{role} [IND]"} for role in ("user", "system", "assistant"))
    conversations = [
        ({"id": "a", "messages": [user, assistant, user, assistant]}, np.array([0.9, np.nan])),
        ({"id": "b", "messages": [user, assistant, user]}, np.array([0.9, 0.2])),
        ({"id": "c", "messages": [system, system, user]}, np.array([0.9])),
        ({"id": "d", "messages": [{"role": "user", "content": "long " * 99}]}, np.array([0.9])),
    ]
    turns = labelled_turns(tokenizer, conversations, "slot", 0.6, 90)
    assert [fork.plain.count(mark) for fork in turns.forks] == [0, 0, 1]  # typed ones are text
    assert [fork.marked.count(mark) for fork in turns.forks] == [1, 1, 2]
    assert turns.scores.tolist() == [0.9, 0.9, 0.2]
    assert turns.conversations.tolist() == [0, 1, 1]
    assert sorted(turns.left_out.values()) == [1, 1, 1]
    assert turns.left_out["without a score"] == turns.left_out["of more than 90 tokens"] == 1
    plain = fork_messages(tokenizer, [{"role": "user", "content": "user [ IND]"}])
    assert turns.forks[0].plain == plain.plain


def test_the_threshold_has_the_highest_f1():
    log_odds, is_positive = drawn(200)
    p = np.round(1 / (1 + np.exp(-log_odds)), 2)  # with ties
    found = fitting._best_threshold(p, is_positive)

    def f1(threshold):
        marked = p > threshold
        return 2 * (marked & is_positive).sum() / (marked.sum() + is_positive.sum())

    assert f1(found) == max(f1(threshold) for threshold in np.linspace(0.005, 0.995, 199))
    apart = np.array([0.1, 0.1, 0.7, 0.9])
    assert fitting._best_threshold(apart, apart > 0.5) == pytest.approx(0.4)


def test_too_few_turns_are_one_line(model, tokenizer):
    few = [(conversation, np.full(len(scores), 0.9)) for conversation, scores in scored()]
    for conversations in (few, list(scored(8))):
        turns = labelled_turns(tokenizer, conversations, "probe", 0.6, 512)
        settings = {"method": "probe", "layers": [1], "beta": 0.6, "fingerprint": "f", "provenance": {}}
        with pytest.raises(InputError, match=r"have a score above beta 0.6, in too few conversations; at least 10"):
            fit(model, tokenizer, turns, **settings)


def test_no_conversation_is_on_both_sides(tokenizer):
    turns = labelled_turns(tokenizer, scored(), "probe", 0.6, 512)
    folds = fitting._folds(turns.scores > 0.6, turns.conversations, 0.6)
    assert sorted(np.concatenate([own for _, own in folds]).tolist()) == list(range(len(turns.scores)))
    for rest, own in folds:
        assert not set(turns.conversations[rest]) & set(turns.conversations[own])


def write_scores(folder, conversations, scores):
    """What `ctxaware score` writes, with scores of our choice."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ctxaware.data.conversations import fingerprint_messages
    from ctxaware.scores.shards import FINGERPRINT

    rows = [
        {
            **{"conversation_id": c["id"], "turn": t, "score": float(s), "response_tokens": 3, "user_tokens": 5 + t},
            FINGERPRINT: fingerprint_messages(c["messages"]),
        }
        for c, values in zip(conversations, scores, strict=True)
        for t, s in enumerate(values)
    ]
    manifest = {"layers": [15], "data": "data", "model": "seed"}
    table = pa.Table.from_pylist(rows)
    metadata = {b"ctxaware": json.dumps({"manifest": manifest, "rejected": {}}).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), folder / "scores.parquet")
    (folder / "data.jsonl").write_text("".join(json.dumps(c) + "\n" for c in conversations))
    return folder / "data.jsonl", folder / "scores.parquet"


@pytest.mark.parametrize("method", ["slot", "probe"])
def test_the_command_writes_beside_the_model_and_prints_what_it_is_worth(
    tmp_path, tokenizer, capsys, monkeypatch, method
):
    from ctxaware.commands.app import main

    folder = save_model(tmp_path / "model", tokenizer)
    pairs = list(scored())
    data, scores = write_scores(tmp_path, [c for c, _ in pairs], [s for _, s in pairs])
    words = ["auto", "fit", "--model", folder, "--data", data, "--scores", scores, "--method", method]
    monkeypatch.setattr(sys, "argv", ["ctxaware", *map(str, words), *(["--layer", "0,2"] if method == "probe" else [])])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 0
    said = capsys.readouterr().out
    assert "of 79 turns have a score above 0.6" in said
    assert "AUROC 0." in said
    assert re.search(r"calibration error 0\.\d+ \(0\.\d+ if all were right\)", said)
    assert not list(folder.glob("*.parts"))
    assert (folder / "auto_indicator.png").stat().st_size > 10_000
    loaded = load_auto_indicator(str(folder))
    assert loaded.method.layers == ((0, 2) if method == "probe" else ())
    assert loaded.fitted["scores"]["model"] == "seed"
    assert f"threshold {loaded.threshold:.3f}: marks" in said


@pytest.mark.parametrize("name", ["auto_indicator.json", "auto_indicator.safetensors"])
def test_a_fit_does_not_write_over_somebody_s_file(tmp_path, tokenizer, name):
    from ctxaware.auto.run import FitRun, fit_model

    folder = save_model(tmp_path / "model", tokenizer)
    (folder / name).write_text('{"mine": 1}')
    with pytest.raises(InputError, match=f"{name} is there and ctxaware did not write it"):
        fit_model(FitRun(str(folder), folder, "slot", 0.6), scored(), {})
    assert (folder / name).read_text() == '{"mine": 1}'


@pytest.mark.parametrize("method", ["slot", "probe"])
def test_an_interrupted_fit_goes_on_and_gives_the_same_to_the_bit(tmp_path, model, tokenizer, monkeypatch, method):
    monkeypatch.setattr(fitting, "CHUNK", 16)
    turns, undisturbed, quality = fitted(model, tokenizer, method)
    settings = {"method": method, "layers": [1], "beta": 0.6, "fingerprint": "f", "provenance": {"data": "d"}}
    n_read = []

    def killed(n, _):
        n_read.append(n)
        if sum(n_read) > 2 * 16:
            raise KeyboardInterrupt

    folder = tmp_path / "auto_indicator.json.parts"
    with pytest.raises(KeyboardInterrupt), kept_beside(tmp_path, {"model": "m"}) as keep:
        fit(model, tokenizer, turns, **settings, advance=killed, keep=keep)
    kept = sorted(folder.glob("*.npz"))
    assert len(kept) == 2
    kept[1].write_bytes(kept[1].read_bytes()[:-40])  # torn: it is read again
    with (
        pytest.raises(InputError, match=r"holds a run with model m \(now other\)"),
        kept_beside(tmp_path, {"model": "other"}),
    ):
        pass
    n_read.clear()
    with kept_beside(tmp_path, {"model": "m"}) as keep:
        again, its_quality = fit(model, tokenizer, turns, **settings, advance=lambda n, _: n_read.append(n), keep=keep)
    assert sum(n_read) == len(turns.forks) - 16
    assert not folder.exists()
    for indicator, name in ((undisturbed, "a"), (again, "b")):
        indicator.save(tmp_path / name)
    files = [sorted((tmp_path / name).iterdir()) for name in ("a", "b")]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    assert its_quality.to_json() == quality.to_json()


def test_what_was_read_with_another_chat_template_is_not_taken_up(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(fitting, "CHUNK", 16)
    folder = save_model(tmp_path / "model", tokenizer)
    run = FitRun(str(folder), tmp_path / "out", "probe", 0.6, layer="1")
    keep = Kept.__call__

    def killed(self, number, read):
        if number == 1:
            raise KeyboardInterrupt
        return keep(self, number, read)

    monkeypatch.setattr(Kept, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        fit_model(run, scored(), {})
    monkeypatch.setattr(Kept, "__call__", keep)
    template = folder / "chat_template.jinja"
    template.write_text("{{ '' }}Now! " + template.read_text())
    with pytest.raises(InputError, match=r"holds a run with prompts \w+\.* \(now \w+"):
        fit_model(run, scored(), {})


def test_the_error_of_right_probabilities_is_what_chance_makes_of_it():
    p = np.random.default_rng(0).random(150)
    errors = [reliability(p, np.random.default_rng(seed).random(150) < p).error for seed in range(1000, 1300)]
    assert error_by_chance(p) == pytest.approx(np.mean(errors), abs=0.004)
    assert error_by_chance(p) > 0.05
    assert error_by_chance(np.array([0.0, 1.0, 1.0])) == 0


def test_mistakes_in_the_options_are_one_line(tmp_path, tokenizer, capsys, monkeypatch):
    from ctxaware.commands.app import main

    folder = save_model(tmp_path / "model", tokenizer)
    pairs = list(scored())
    data, scores = write_scores(tmp_path, [c for c, _ in pairs], [s for _, s in pairs])
    for words, reason in [
        (["--method", "slot", "--layer", "1"], "a layer goes with the probe"),
        (["--method", "probe", "--layer", "9"], "layer_idx must be in 0–3 for this model, got 9"),
        (["--method", "probe", "--layer", "x"], "layer must be a number"),
        (["--method", "probe", "--beta", "2"], "beta must be in 0–1"),
        (["--method", "guess"], "guess"),
        (["--method", "slot", "--device", "cuda"], "device 'cuda' can't be used here"),
        (["--method", "slot", "--beta", "0.95"], "0 of 79 turns have a score above beta 0.95"),
    ]:
        line = ["auto", "fit", "--model", folder, "--data", data, "--scores", scores, *words]
        monkeypatch.setattr(sys, "argv", ["ctxaware", *map(str, line)])
        with pytest.raises(SystemExit) as done:
            main()
        assert done.value.code == 2
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
        assert len(error) == 1
        assert reason in error[0]
    assert not list(folder.glob("auto_indicator*"))
