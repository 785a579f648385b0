import itertools

import numpy as np
import pytest
from scipy.stats import permutation_test
from support.runs import cells, passages, sample, write_run

from ctxaware.errors import InputError
from ctxaware.noninferiority import sign_flip
from ctxaware.report.compare import GENERATION, LIMIT, MISSING, PROMPTS, VERSIONS, pair
from ctxaware.report.samples import read_run


@pytest.fixture
def paired(tmp_path):
    """Pairs of one task of two runs; each is rows, or (rows, entries of the results file)."""

    def run(before, after, metric=None, task="t"):
        read = []
        for which, of_run in (("before", before), ("after", after)):
            rows, more = of_run if isinstance(of_run, tuple) else (of_run, {})
            read.append(read_run(write_run(tmp_path / which, {task: rows}, **more))[task])
        return pair(*read, metric)

    return run


def kinds(pairs):
    return [mismatch.kind for mismatch in pairs.mismatches]


def test_samples_are_paired_by_document_whatever_their_order_and_number(paired):
    before = [sample(n, score, {"q": n}) for n, score in enumerate([0, 1, 0, 1])]
    after = [sample(3 - n, score, {"q": n}) for n, score in reversed(list(enumerate([1, 1, 0, 0])))]
    pairs = paired(before, after)
    assert pairs.before.tolist() == [0, 1, 0, 1]
    assert pairs.after.tolist() == [1, 1, 0, 0]
    assert [x["doc"] == y["doc"] for x, y in pairs.rows] == [True] * 4
    assert (pairs.losses, pairs.gains, pairs.is_binary) == (1, 1, True)
    assert pairs.difference().mean == 0
    assert kinds(pairs) == []


def test_a_document_that_a_data_set_holds_twice_is_paired_in_its_order(paired):
    docs = [{"q": "same"}, {"q": "other"}, {"q": "same"}]
    pairs = paired(*([sample(n, s, doc) for n, (s, doc) in enumerate(zip(scores, docs, strict=True))]
                     for scores in ([1, 0, 0], [1, 1, 0])))  # fmt: skip
    assert pairs.differences.tolist() == [0, 1, 0]
    assert len(set(pairs.clusters)) == 2


def test_clusters_are_passages_cells_or_questions(paired):
    assert (pairs := paired(passages([1, 0, 1, 0], 2), passages([1, 1, 1, 1], 2))).cluster_kind == "passage"
    assert pairs.difference().n_clusters == 2
    assert (pairs := paired(cells([1, 0, 1, 0]), cells([1, 1, 1, 1]))).cluster_kind == "cell"
    assert pairs.difference().n_clusters == 4
    assert paired([1, 0], [0, 0]).cluster_kind == "question"


def test_mcnemars_exact_test_is_of_0_1_scores_only(paired):
    pairs = paired([1] * 8 + [0] * 12, [0] * 8 + [1] * 2 + [0] * 10)
    assert pairs.mcnemar() == pytest.approx(2 * 56 / 2**10)  # 8 of 10, both sides
    assert paired([1, 0], [1, 0]).mcnemar() == 1.0
    assert paired([0.5, 1], [0, 1]).mcnemar() is None


def test_what_differs_is_named(paired):
    rows = [0, 1, 1]
    assert kinds(paired(rows, [0, 1])) == [MISSING]
    (mismatch,) = paired(
        (rows, {"results": {"chat_template": "{{ messages }}"}}), [sample(n, 1, prompt="other") for n in range(3)]
    ).mismatches
    assert mismatch.kind == PROMPTS
    assert mismatch.text == "t: 3 of 3 prompts differ (with against without chat template)"
    (mismatch,) = paired(rows, (rows, {"versions": 2.0})).mismatches
    assert (mismatch.kind, mismatch.text) == (VERSIONS, "t: task version 1.0 against 2.0")
    (mismatch,) = paired(rows, (rows, {"n_shot": 5})).mismatches
    assert (mismatch.kind, mismatch.text) == (VERSIONS, "t: number of examples 0 against 5")
    assert kinds(paired(rows, [sample(n, 1, target="other") for n in range(3)])) == [VERSIONS]
    (mismatch,) = paired((rows, {"n_samples": {"original": 78, "effective": 3}}), rows).mismatches
    assert (mismatch.kind, mismatch.text) == (LIMIT, "t: the first run has 3 of 78 documents")
    settings = {"configs": {"generation_kwargs": {"max_gen_toks": 100, "until": ["\n"]}}}
    (mismatch,) = paired(rows, (rows, settings)).mismatches
    assert mismatch.kind == GENERATION
    assert mismatch.text == "t: max_gen_toks 50 against 100, until None against ['\\n']"


def test_runs_without_a_document_in_common_do_not_compare(paired):
    with pytest.raises(InputError, match="no document in common"):
        paired([sample(0, 1, {"q": "a"})], [sample(0, 1, {"q": "b"})])
    row = {**sample(0, 1), "doc_hash": None}
    rows = [row], {"results": {"task_hashes": None}}
    with pytest.raises(InputError, match="document 0 has no doc_hash"):
        paired(rows, rows)


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ({"metric": "acc"}, {"metric": "contain"}, "the first run has acc,none, the second contain,none"),
        (
            {"metric": "em", "filter": "strict"},
            {"metric": "em", "filter": "flexible"},
            "the first run has em,strict, the second em,flexible",
        ),
    ],
)
def test_two_metrics_or_filters_do_not_compare(paired, first, second, says):
    with pytest.raises(InputError, match=says):
        paired([sample(0, 1.0, **first)], [sample(0, 1.0, **second)])


def test_sign_flips_of_0_1_scores_are_mcnemars_exact_test(paired):
    pairs = paired([1] * 8 + [0] * 12, [0] * 8 + [1] * 2 + [0] * 10)
    assert sign_flip(pairs.differences, pairs.clusters) == pytest.approx(pairs.mcnemar() / 2)
    assert sign_flip([0, 0, 0], "abc") == sign_flip([1, 0, -1], "abc") == sign_flip([0.5, -0.1], "ab") == 1.0


@pytest.mark.parametrize("n", [9, 60])
def test_sign_flips_are_those_of_whole_clusters(n):
    rng = np.random.default_rng(n)
    sums = rng.normal(-0.3, 1, n)
    parts = rng.random(n)
    values = np.concatenate([sums * parts, sums * (1 - parts)])
    ours = sign_flip(values, [*range(n), *range(n)])
    if n < 13:
        exact = np.mean([np.dot(s, np.abs(sums)) <= sums.sum() + 1e-9 for s in itertools.product((-1, 1), repeat=n)])
        assert ours == pytest.approx(exact)
    else:
        scipys = permutation_test((sums,), np.sum, permutation_type="samples", alternative="less", rng=1).pvalue
        assert ours == pytest.approx(scipys, abs=0.02)
