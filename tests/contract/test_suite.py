"""specbench.testing: a method that is spoilt fails the sentence that forbids it, and an honest one does not."""

from dataclasses import replace

import pytest
import torch

from methods.draft_model import DraftModel
from methods.medusa import Medusa
from specbench.decode.acceptance import Rejection
from specbench.decode.method import TokenTree
from specbench.errors import ContractError
from specbench.testing import test_contract as suite
from specbench.testing.cases import Case, cases_of
from specbench.testing.imports import foreign_imports
from tests.plugin.specbench_bigram import spoilt
from tests.plugin.specbench_bigram.bigram import Bigram
from tests.plugin.specbench_bigram.clock import LooksAtTheClock


class ReadsItsPromptLate(DraftModel):
    """The draft model's prefill, moved across the line into the first step."""

    examples = ({"draft": "near", "gamma": 2},)

    def begin(self, view, prefill):
        self.late = view, prefill

    def draft(self, view):
        if self.late:
            super().begin(*self.late)
            self.late = None
        return super().draft(view)


class CarriesMoreThanItSays(Medusa):
    """Its state lives from step to step, and a recording of its draft knows the first one alone."""

    examples = ({"heads": "same", "tree": "chain"},)

    def carries(self):
        return ()


class PromisesAndLooks(Medusa):
    """Python runs once; whoever looks at a tensor in it sees that one step."""

    examples = ({"heads": "near", "tree": "chain"},)

    def draft(self, view):
        tree = super().draft(view)
        return tree if int(view.root[0]) else TokenTree.empty(view)


class CountsOnTheHost(Medusa):
    """On a CPU nobody notices; on a GPU every draft brings a tensor from the host."""

    examples = ({"heads": "near", "tree": "chain"},)

    def draft(self, view):
        tree = super().draft(view)
        return replace(tree, tokens=tree.tokens[:, torch.arange(tree.tokens.shape[1])])


SAMPLED = {"rule": Rejection(), "temperature": 0.8}
FORBIDDEN = [
    (LooksAtTheClock, suite.test_it_imports_the_contract_and_no_clock_no_loop_no_other_method, {}),
    (spoilt.KeepsItsTable, suite.test_nothing_of_one_batch_reaches_the_next, {"how": {}}),
    (spoilt.WritesToTheTargetsCache, suite.test_greedy_text_equals_that_of_autoregressive_and_of_transformers, {}),
    (spoilt.WritesToTheText, suite.test_it_keeps_to_its_caps_and_writes_to_nothing_that_it_is_shown, {"how": {}}),
    (spoilt.MovesTheRoot, suite.test_greedy_text_equals_that_of_autoregressive_and_of_transformers, {}),
    (spoilt.DraftsBeyondItsCaps, suite.test_greedy_text_equals_that_of_autoregressive_and_of_transformers, {}),
    (spoilt.SaysThatItDrew, suite.test_rejection_leaves_the_joint_law_of_the_first_tokens_as_the_targets, {}),
    (spoilt.DropsWhatItHasSeen, suite.test_rejection_leaves_the_joint_law_of_the_first_tokens_as_the_targets, {}),
    (
        spoilt.ThrowsItsOwnDice,
        suite.test_the_same_seed_gives_the_same_tokens_and_another_seed_others,
        {"rule": Rejection()},
    ),
    (
        spoilt.LooksAtItsNeighbour,
        suite.test_a_prompts_tokens_depend_on_neither_its_batch_nor_its_slot_nor_a_fresh_start,
        {"how": SAMPLED},
    ),
    (
        spoilt.RefusesWithoutAReason,
        suite.test_it_runs_one_row_at_temperature_zero_and_gives_a_reason_for_what_it_refuses,
        {},
    ),
    (spoilt.TakesAnyOption, suite.test_an_unknown_option_is_refused, {}),
    (spoilt.TakesAnyOption, suite.test_its_options_are_strict_frozen_and_described, {}),
    (spoilt.Renamed, suite.test_its_name_can_stand_in_an_experiment, {}),
    (
        CarriesMoreThanItSays,
        suite.test_recorded_on_other_prompts_and_replayed_without_python_its_text_is_the_same,
        {"how": {}},
    ),
    (
        PromisesAndLooks,
        suite.test_recorded_on_other_prompts_and_replayed_without_python_its_text_is_the_same,
        {"how": {}},
    ),
    (PromisesAndLooks, suite.test_on_a_gpu_its_phases_stay_on_the_device_and_a_graph_could_hold_them, {}),
    (CountsOnTheHost, suite.test_on_a_gpu_its_phases_stay_on_the_device_and_a_graph_could_hold_them, {}),
    (ReadsItsPromptLate, suite.test_it_reads_the_prompts_in_begin_and_not_in_its_first_step, {}),
]
every_fault = pytest.mark.parametrize(
    ("spoilt_kind", "sentence", "how"),
    FORBIDDEN,
    ids=[f"{kind.__name__} in {sentence.__name__}" for kind, sentence, _ in FORBIDDEN],
)


def ask(kind, sentence, how) -> None:
    """One sentence of the suite about one class, with each of its examples."""
    if "kind" in sentence.__annotations__:
        sentence(kind=kind, **how)
        return
    for case in cases_of(kind):
        sentence(case=case, **how)


@every_fault
def test_a_spoilt_method_fails(spoilt_kind, sentence, how):
    with pytest.raises((AssertionError, ContractError, pytest.fail.Exception)):
        ask(spoilt_kind, sentence, how)


@every_fault
def test_the_honest_one_passes_the_same_sentence(spoilt_kind, sentence, how):
    honest = next(parent for parent in spoilt_kind.__mro__ if parent in {spoilt.Sampled, Bigram, DraftModel, Medusa})
    ask(honest, sentence, how)


@pytest.mark.parametrize(
    ("spoilt_kind", "words"),
    [
        (spoilt.GivesNoExample, "examples is empty"),
        (
            spoilt.GivesABadExample,
            "gamma: Input should be greater than or equal to 1; its class attribute examples says",
        ),
    ],
)
def test_a_method_without_a_usable_example_is_told_so(spoilt_kind, words):
    with pytest.raises(ContractError, match=words):
        cases_of(spoilt_kind)


def test_a_method_that_refuses_a_batch_is_skipped_with_its_reason_and_not_passed():
    class OneRow(Bigram):
        def unsupported(self, batch_size, rule):
            return "one row only" if batch_size > 1 else None

    with pytest.raises(pytest.skip.Exception, match="one row only"):
        suite.test_greedy_text_equals_that_of_autoregressive_and_of_transformers(Case(OneRow, {}))


def test_imports_are_followed_through_the_methods_own_folder():
    """The clock may stand in another file than the class."""
    assert foreign_imports(Bigram) == []
    assert foreign_imports(LooksAtTheClock) == ["tests.plugin.specbench_bigram.clock:3: time.perf_counter"]
    late = ReadsItsPromptLate
    assert foreign_imports(late)[0].startswith("tests.contract.test_suite:")
    assert any(fault.endswith("clock:3: time.perf_counter") for fault in foreign_imports(late))
