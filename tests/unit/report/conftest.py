"""Run folders drawn from the known model of `tests.unit.report.synthetic`, written once for all tests."""

from dataclasses import replace

import pytest

from specbench.report.metrics import frames, load
from tests.unit.report.a_study import write_study
from tests.unit.report.beams_of_a_drafter import BEAMS, plan
from tests.unit.report.synthetic import AUTOREGRESSIVE, TWIN, Arm, Plan, write_results, write_rules

ODD = (
    AUTOREGRESSIVE,
    TWIN,
    Arm("fast", alpha=0.8, gamma=4, draft_s=0.0005),
    Arm("lossy", alpha=0.9, gamma=4, draft_s=0.0001, lossless=False, verdict=None),
    Arm("simulated", alpha=0.95, gamma=4, simulated=True, verdict=None),
    Arm("crashed", alpha=0.5, gamma=2, status="oom", fails_from_batch=2),
    Arm("tied", alpha=0.5, gamma=2, draft_s=0.001, verdict="near-tie"),
    Arm("same", "transformers-generate"),
)


@pytest.fixture(scope="session")
def odd_folder(tmp_path_factory):
    """Every oddity at once: a failed, a lossy and a simulated arm, near ties, loops, a partial batch."""
    plan = Plan(arms=ODD, batch_sizes=(1, 2), prompts=9, repeats=2, max_new_tokens=32, loops=0.7)
    return write_results(tmp_path_factory.mktemp("results") / "odd" / "Example-3000", plan)


@pytest.fixture(scope="session")
def odd_results(odd_folder):
    """The tables of the odd folder."""
    return load(odd_folder)


@pytest.fixture(scope="session")
def odd_frames(odd_results):
    """What is shown of the odd folder."""
    return frames(odd_results)


@pytest.fixture(scope="session")
def beam_frames(tmp_path_factory):
    """Beams of three widths and two lengths, and Medusa, set beside all that is published."""
    return frames(load(write_results(tmp_path_factory.mktemp("beams"), plan())))


@pytest.fixture(scope="session")
def study_folder(tmp_path_factory):
    """Six drafts, run, traced, timed and scored."""
    return write_study(tmp_path_factory.mktemp("results") / "study" / "Example-3000")


@pytest.fixture(scope="session")
def study_results(study_folder):
    """The tables of the study."""
    return load(study_folder)


@pytest.fixture(scope="session")
def study_frames(study_results):
    """What is shown of the study."""
    return frames(study_results)


@pytest.fixture(scope="session")
def rule_frames(tmp_path_factory):
    """One arm under the exact and the lossy rule, whose acceptance is higher, at two temperatures."""
    plans = {}
    for rule, more, is_lossless in (("rejection", 0.0, True), ("redrafter_paper", 0.15, False)):
        arms = [replace(BEAMS[-1], alpha=BEAMS[-1].alpha + more, lossless=is_lossless, verdict=None)]
        plans[rule] = plan(arms, temperatures=(0.8, 1.0), batch_sizes=(1,), prompts=8)
    return frames(load(write_rules(tmp_path_factory.mktemp("rules"), plans)))
