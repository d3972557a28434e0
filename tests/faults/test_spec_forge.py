"""Faults found in SpecForge and in speculators' scripts, and that specbench does not have them."""

import json

import pytest

from methods.draft_model import DraftModel
from specbench.bench.prompts import load_prompts
from specbench.config import MeasureSettings, PromptSettings
from specbench.errors import ConfigError
from specbench.records.store import Store
from tests.faults.conftest import plan, with_method
from tests.unit.bench.bench_plans import run


def test_what_was_measured_before_an_interruption_is_there(place):
    """Its results were written after the last cell, and an interruption took them all."""

    class Interrupted(DraftModel):
        def begin(self, view, prefill):
            self.batches = getattr(self, "batches", 0) + 1
            if self.batches > 4:  # a warm-up pass, and both passes of the first block
                raise KeyboardInterrupt
            super().begin(view, prefill)

    results = place / "interrupted"
    with pytest.raises(KeyboardInterrupt):
        run(place, plan(place), results=results, method_class=with_method("draft_model", Interrupted))
    [folder] = results.glob("lab/*")
    rows = Store(folder).read("requests")
    assert len(rows) > 0
    assert set(rows["status"]) == {"ok"}
    assert set(rows.groupby(["repeat", "block"])["arm"].nunique()) == {4}


def test_no_prompt_is_used_twice_to_make_up_a_number(target, tmp_path):
    """It went round its prompts until there were enough, and met its own prefix cache."""
    (tmp_path / "p.txt").write_text("import os\nimport sys\n")
    with pytest.raises(ConfigError, match="none is used twice"):
        load_prompts(PromptSettings(source=str(tmp_path / "p.txt"), count=3), target, max_new_tokens=4)


def test_a_run_repeats_itself_unless_a_user_says_no():
    """One run was its measurement."""
    assert MeasureSettings().repeats > 1


def test_what_was_asked_for_is_stored_beside_what_came_out(summary):
    """speculators keeps the command that was typed: so does a run, with the experiment as it was understood."""
    row = Store(summary.folder).read("runs").iloc[0]
    assert json.loads(row["argv"]) == ["specbench", "run"]
    assert "small draft" in row["experiment"]
