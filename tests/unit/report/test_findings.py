"""specbench.report.findings, specbench.report.reasons and specbench.report.claims"""

import re

import pytest

from specbench.report.findings import QUESTIONS, answers, findings
from specbench.report.metrics import frames, load
from specbench.report.words import counted, listed, ordinal
from tests.unit.report.synthetic import AUTOREGRESSIVE, TWIN, Arm, Plan, write_results

QUICK = Arm("draft_model draft=a gamma=2", alpha=0.8, gamma=2, draft_s=0.0005, label="draft_model")
SWEEP = (
    AUTOREGRESSIVE,
    TWIN,
    QUICK,
    Arm("draft_model draft=a gamma=4", alpha=0.8, gamma=4, draft_s=0.0005, label="draft_model"),
    Arm("draft_model draft=b gamma=2", alpha=0.8, gamma=2, draft_s=0.008, label="draft_model"),
    Arm("draft_model draft=b gamma=4", alpha=0.8, gamma=4, draft_s=0.008, label="draft_model"),
)
CLAIM = """\
name: x
claim:
  says: a fast draft beats a slow one
  source: A paper, figure 1
  faster: {draft: a}
  than: {draft: b}
"""


def report(folder, *arms, claim="name: x\n", **plan):
    run = {"experiment": claim, **plan.pop("run", {})}
    settings = {"batch_sizes": (1,), "prompts": 8, "repeats": 2, "max_new_tokens": 48} | plan
    results = load(write_results(folder, Plan(arms, run=run, **settings)))
    return results, frames(results)


def said(found):
    return {answer.question: answer.sentences for answer in answers(*found)}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return report(tmp_path_factory.mktemp("sweep"), *SWEEP, claim=CLAIM)


def test_the_four_questions_are_answered_in_order(sweep):
    found = answers(*sweep)
    assert [answer.question for answer in found] == list(QUESTIONS)
    assert all(answer.sentences for answer in found)
    assert all(sentence.endswith(".") for answer in found for sentence in answer.sentences)


def test_the_fastest_arm_is_named_with_its_interval_its_floor_and_the_text(sweep):
    sentences = said(sweep)[QUESTIONS[0]]
    fastest = "draft_model draft=a gamma=4 is fastest: "
    assert sentences[0].startswith(fastest)
    assert re.search(r"\d\.\d\d times \(95 % interval \d\.\d\d to \d\.\d\d, 8 batches of prompts\)", sentences[0])
    assert re.search(r"the difference is resolved; A/A noise floor \d\.\d %\.$", sentences[0])
    assert sentences[1].startswith("Next is draft_model draft=a gamma=2 with ")
    assert "Token by token, all 80 texts that were compared are the target's own." in sentences


def test_where_the_time_goes_and_why_an_arm_loses_is_told_from_the_phases(sweep):
    sentences = said(sweep)[QUESTIONS[1]]
    # A step of the model is .0005 x 4 + .010 + .0008 s against .0108 s; its verification takes as long as a forward.
    assert re.match(
        r"A step of draft_model draft=a gamma=4 takes 12\.\d ms for \d\.\d\d tokens: 16 % draft, 7\d % v", sentences[0]
    )
    assert re.search(r"verification of 5 tokens takes (1\.0\d|0\.9\d) times a one-token forward\.$", sentences[0])
    assert re.match(
        r"Its first draft token is accepted in [78]\d % of the steps that draft one, the fourth in", sentences[1]
    )
    lost = [sentence for sentence in sentences if sentence.startswith("draft_model draft=b gamma=4 loses (0.")]
    # .008 x 4 of .0428 s.
    assert "drafting takes 75 % of its step, verification of 5 tokens takes" in lost[0]


def test_break_even_points_are_those_of_the_model(sweep):
    sentences = said(sweep)[QUESTIONS[2]]
    lost = next(
        sentence for sentence in sentences if sentence.startswith("draft_model draft=b gamma=4 would break even")
    )
    # .0428 s a step over .0108 s a token is 3.96 tokens.
    needed, now = map(float, re.search(r"with (\d\.\d\d) tokens a step \(now (\d\.\d\d);", lost).groups())
    assert needed == pytest.approx(0.0428 / 0.0108, rel=0.03)
    # The draft token that pays: (tokens x .0108 - .0108) / 4 s.
    even = float(re.search(r"or with a draft token of (\d\.\d) ms \(now 8\.\d ms\)", lost).group(1))
    assert even == pytest.approx((now - 1) * 10.8 / 4, rel=0.05)


def test_the_best_gamma_is_chosen_on_one_half_and_reported_on_the_other(sweep):
    sentences = said(sweep)[QUESTIONS[2]]
    chosen = [sentence for sentence in sentences if sentence.startswith("The best gamma of draft_model draft=a is 4: ")]
    assert re.search(
        r"chosen on 4 batches of prompts, it gives \d\.\d\d times \(95 % interval .*\) on the other 4,", chosen[0]
    )


def test_the_best_of_a_methods_settings_is_chosen_likewise(sweep):
    sentences = said(sweep)[QUESTIONS[2]]
    chosen = [sentence for sentence in sentences if sentence.startswith("The best setting of draft_model is ")]
    assert re.match(r".* is draft_model draft=a gamma=4: chosen on 4 batches of prompts, it gives \d", chosen[0])


def test_few_batches_choose_no_gamma_and_say_so(tmp_path):
    sentences = said(report(tmp_path, *SWEEP, prompts=3))[QUESTIONS[2]]
    assert "Too few batches of prompts finished to choose a gamma of draft_model draft=a on half of them." in sentences
    assert not any("best gamma" in sentence for sentence in sentences)


def test_a_claim_is_held_against_pairs_of_arms_that_differ_in_nothing_else(sweep):
    sentences = said(sweep)[QUESTIONS[3]]
    assert sentences[0] == "Claimed (A paper, figure 1): a fast draft beats a slow one."
    assert sentences[1] == "Of 2 pairs of arms that differ in nothing else, in 2 it holds."
    expected = (
        r"At batch 1, T = 0, draft_model draft=a gamma=4 is \d\.\d\d times as fast as draft_model draft=b gamma=4 "
    )
    assert any(re.match(expected + r"\(95 % interval .*\): holds\.", sentence) for sentence in sentences)


def test_a_claim_that_is_wrong_here_is_said_to_be(tmp_path):
    claim = CLAIM.replace("draft: a", "draft: c").replace("draft: b", "draft: a").replace("draft: c", "draft: b")
    sentences = said(report(tmp_path, AUTOREGRESSIVE, TWIN, QUICK, SWEEP[4], claim=claim))[QUESTIONS[3]]
    assert sentences[1] == "Here the opposite was measured."


def test_a_claim_about_what_did_not_run_is_not_answered(tmp_path):
    sentences = said(report(tmp_path, AUTOREGRESSIVE, TWIN, QUICK, claim=CLAIM))[QUESTIONS[3]]
    assert sentences[-1] == "Nothing that it compares has finished here, so these data cannot answer."


def test_a_rehearsal_does_not_answer_for_other_models(tmp_path):
    run = {"notes": '{"rehearsal": true}'}
    sentences = said(report(tmp_path, AUTOREGRESSIVE, TWIN, QUICK, claim=CLAIM, run=run))[QUESTIONS[3]]
    assert any(sentence.startswith("This is a rehearsal on the embedded models") for sentence in sentences)


def test_a_published_value_stands_beside_the_one_from_here(tmp_path):
    claim = "name: x\nclaim: {says: it is fast, published: {draft_model draft=a gamma=2: 9.0}}\n"
    sentences = said(report(tmp_path, AUTOREGRESSIVE, TWIN, QUICK, claim=claim))[QUESTIONS[3]]
    assert re.match(r"batch 1, T = 0, draft_model draft=a gamma=2: published 9\.00, here \d\.\d\d \(", sentences[1])
    assert sentences[1].endswith("the interval leaves the published value out.")


def test_without_a_claim_nothing_is_made_up(tmp_path):
    sentences = said(report(tmp_path, AUTOREGRESSIVE, TWIN, QUICK, prompts=2))[QUESTIONS[3]]
    assert sentences == ["The experiment names no claim, so there is nothing published to hold these numbers against."]


def test_a_difference_below_the_noise_is_not_called_faster(tmp_path):
    same = Arm("same", "transformers-generate", verify_s=0.0099)
    sentences = said(report(tmp_path, AUTOREGRESSIVE, TWIN, same, prompts=4, repeats=1, noise=0.05))[QUESTIONS[0]]
    assert "is fastest" not in sentences[0]
    assert sentences[0].startswith(("No method is resolved to be faster", "No method was faster"))


def test_few_batches_leave_the_question_open(tmp_path):
    sentences = said(report(tmp_path, AUTOREGRESSIVE, TWIN, QUICK, prompts=1, repeats=1))[QUESTIONS[0]]
    assert re.match(
        r".* shows the highest speed-up, \d\.\d\d times \(no interval: 1 batch of prompts, at least 4 are needed\)",
        sentences[0],
    )
    assert "whether other prompts would show it is open" in sentences[0]


def test_many_cells_are_counted_and_not_recited(tmp_path):
    found = report(
        tmp_path, AUTOREGRESSIVE, TWIN, QUICK, batch_sizes=(1, 2), temperatures=(0.0, 0.8), prompts=8, repeats=1
    )
    first = said(found)[QUESTIONS[0]]
    assert re.match(
        r"draft_model draft=a gamma=2 is fastest in [234] of 4 cells: \d\.\d\d to \d\.\d\d times the speed", first[0]
    )


def test_an_arm_whose_rows_end_apart_is_told_from_one_whose_steps_do_not_pay(tmp_path):
    lookup = Arm("lookup", "prompt_lookup", alpha=0.9, gamma=8, drafted_chance=0.12, verify_s=0.0102)
    found = report(tmp_path, AUTOREGRESSIVE, TWIN, QUICK, lookup, batch_sizes=(4,), prompts=16, repeats=1)
    row = found[1].summary.set_index("arm").loc["lookup"]
    assert row["occupancy"] < 0.95
    cost = found[1].costs.set_index("arm").loc["lookup"]
    lost = [sentence for sentence in said(found)[QUESTIONS[1]] if "although its steps pay for themselves" in sentence]
    assert bool(lost) == bool(
        row["speedup_core"] < 1 <= cost["composed_speedup"] and row["resolution"] != "not resolved"
    )


def test_the_fastest_arm_is_one_that_keeps_the_targets_text(odd_results, odd_frames):
    (title, sentences), _ = findings(odd_results, odd_frames)
    assert title == "batch 1, T = 0"
    assert sentences[0].startswith("fast is fastest: ")
    assert any(re.search(r"^lossy shows .* times but it is lossy", sentence) for sentence in sentences)
    assert "The fastest arm's text is the target's own in all 18 requests." in sentences
    assert re.match(r"A step of fast takes 1\d\.\d ms for \d\.\d\d tokens: \d+ % draft, ", sentences[-1])


def test_near_ties_are_told_apart_from_equal_texts(odd_results, odd_frames):
    sentences = said((odd_results, odd_frames))[QUESTIONS[0]]
    assert any("36 differ from a near tie on, which rounding decides" in sentence for sentence in sentences)


@pytest.mark.parametrize(
    ("number", "text"), [(1, "1 batch"), (2, "2 batches"), (0, "0 batches"), (1200, "1,200 batches")]
)
def test_a_count_has_its_plural(number, text):
    assert counted(number, "batch", "batches") == text


@pytest.mark.parametrize(
    ("number", "text"), [(1, "first"), (8, "eighth"), (11, "11th"), (12, "12th"), (21, "21st"), (32, "32nd")]
)
def test_an_ordinal_is_spelled_as_it_is_said(number, text):
    assert ordinal(number) == text


@pytest.mark.parametrize(
    ("words", "text"), [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")]
)
def test_a_list_reads_as_a_sentence_has_it(words, text):
    assert listed(words) == text


def test_where_acceptance_is_simulated_no_arm_is_called_fastest_and_every_step_is_taken_apart(tmp_path):
    quick = Arm("quick", alpha=0.8, gamma=4, draft_s=0.0005, simulated=True, verdict=None)
    slow = Arm("slow", alpha=0.8, gamma=4, draft_s=0.008, simulated=True, verdict=None)
    found = report(tmp_path, AUTOREGRESSIVE, TWIN, quick, slow)
    sentences = said(found)
    which, why = sentences[QUESTIONS[0]], sentences[QUESTIONS[1]]
    assert which[0].startswith("Acceptance is simulated for every method here, so none is called fastest: ")
    assert len(why) == 2
    # .0005 x 4 and .008 x 4 of a step that takes .0108 s beside the draft.
    assert re.match(r"A step of quick takes 12\.\d ms for \d\.\d\d tokens: 16 % draft, 7\d % verify, ", why[0])
    assert re.match(r"A step of slow takes 4\d\.\d ms for \d\.\d\d tokens: 7\d % draft, 2\d % verify, ", why[1])
    assert findings(*found) == [("batch 1, T = 0", [which[0], *why])]
