"""specbench.decode over ten model families, with ``transformers`` as the oracle, and proof that faults are seen."""

import pytest

from support import checks, faults, models

# Rotary, windowed and learned positions; the other families are variants of these.
QUICK = ("llama", "gemma2", "gpt2")

family = pytest.mark.parametrize("name", models.FAMILIES)
family_by_arms = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in models.FAMILIES]
)


def planted():
    """Every fault in the quick families, and one in each other; the rest is slow."""
    for turn, name in enumerate(models.FAMILIES):
        for number, fault in enumerate(faults.FAULTS):
            is_quick = name in QUICK or number == turn % len(faults.FAULTS)
            yield pytest.param(name, fault, marks=() if is_quick else pytest.mark.slow)


@family
def test_the_test_models_write_varied_text(name: str):
    for prompt in models.PROMPTS:
        assert len(set(models.greedy_continuation(name, prompt, 24))) >= 6


@family
def test_the_test_models_are_untied(name: str):
    module = models.target(name)
    assert module.get_output_embeddings().weight is not module.get_input_embeddings().weight


@family
def test_eos_ends_the_rows_of_the_test_batch_in_different_places(name: str):
    eos = models.eos_for(name)
    lengths = [len(models.greedy_continuation(name, prompt, 24, eos)) for prompt in models.PROMPTS]
    assert len(set(lengths)) >= 5


@family
def test_logits_over_trees_equal_plain_uncached_forwards(name: str):
    assert checks.logit_difference(name) < 1e-4


@family
def test_logits_over_trees_deeper_than_the_window_equal_plain_uncached_forwards(name: str):
    assert checks.logit_difference(name, deep=True) < 1e-4


@family_by_arms
def test_greedy_ids_of_every_method_equal_transformers_generate_row_by_row(name: str):
    outcome = checks.wrong_rows(name, checks.arms())
    assert outcome.wrong == []
    # The run had to deal with what makes it hard.
    assert outcome.rows_cut_inside_a_draft >= 10
    assert outcome.rows_ended_by_eos >= 50
    assert outcome.accepted >= 500
    assert outcome.refused >= 500


@family
def test_the_perturbed_draft_is_accepted_in_part(name: str):
    near = (arm for arm in checks.arms(thorough=True) if arm.label == "near draft, gamma 4" and arm.with_eos)
    outcome = checks.wrong_rows(name, near)
    assert outcome.accepted >= 10
    assert outcome.refused >= 10


@pytest.mark.parametrize(("name", "fault"), planted())
def test_a_planted_fault_turns_logits_and_ids_red(name: str, fault: str):
    with pytest.MonkeyPatch.context() as patch:
        faults.FAULTS[fault](patch)
        assert checks.logit_difference(name) > 1e-2
        assert checks.wrong_rows(name, checks.quick_arms()).wrong


@family
def test_without_a_planted_fault_the_same_arms_are_green(name: str):
    assert checks.wrong_rows(name, checks.quick_arms()).wrong == []


@pytest.mark.slow
@family
def test_greedy_ids_of_every_method_equal_transformers_with_and_without_eos(name: str):
    assert checks.wrong_rows(name, checks.arms(thorough=True)).wrong == []


@pytest.mark.slow
@family
@pytest.mark.parametrize("seed", range(1, 21))
def test_logits_over_many_more_trees_equal_plain_forwards(name: str, seed: int):
    assert checks.logit_difference(name, seed, rounds=8) < 1e-4
