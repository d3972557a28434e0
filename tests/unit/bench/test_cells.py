"""specbench.bench.cells"""

import pytest

from specbench.bench.cells import ready, rule_of
from specbench.bench.prompts import load_prompts
from specbench.config import DecodeSettings
from specbench.decode.acceptance import Typical
from specbench.errors import ConfigError
from tests.unit.bench.bench_plans import ONE_CELL, TWO_CELLS, plan_of
from tests.unit.models import tiny


def cells(folder, text):
    return ready(plan_of(folder, text), folder / "zoo")


def test_the_last_partial_batch_is_kept(folder):
    assert [len(block.prompts) for block in cells(folder, ONE_CELL)[0].blocks()] == [2, 2, 1]


def test_a_limit_takes_whole_blocks_from_the_first(folder):
    cell = cells(folder, ONE_CELL)[0]
    assert [block.prompts for block in cell.blocks(3)] == [block.prompts for block in cell.blocks()][:2]


def test_the_order_is_shuffled_by_block_and_repeat_and_is_the_same_every_time(folder):
    first, again = cells(folder, TWO_CELLS)[0], cells(folder, TWO_CELLS)[0]
    orders = [
        tuple(arm.name for arm in first.order(block, repeat, 0)) for block in first.blocks() for repeat in range(4)
    ]
    assert len(set(orders)) > 3
    assert orders == [
        tuple(arm.name for arm in again.order(block, repeat, 0)) for block in again.blocks() for repeat in range(4)
    ]


def test_a_change_of_one_arm_makes_every_block_of_the_cell_another_one(folder):
    first = cells(folder, ONE_CELL)[0]
    changed = cells(folder, ONE_CELL.replace("gamma: 2", "gamma: 3"))[0]
    block = first.blocks()[0]
    assert first.block_key(block, 0, 0) != changed.block_key(block, 0, 0)
    assert first.trial_ids["autoregressive"] == changed.trial_ids["autoregressive"]


def test_other_weights_make_another_trial(folder, tmp_path_factory):
    before = cells(folder, ONE_CELL)[0]
    (folder / "zoo").unlink()
    zoo = tiny.zoo(folder / "zoo")
    tiny.save(zoo / "pico-wide", seed=5)
    after = cells(folder, ONE_CELL)[0]
    changed = {name for name in before.trial_ids if before.trial_ids[name] != after.trial_ids[name]}
    assert changed == {"draft_model"}


def test_a_draft_of_another_token_map_is_refused_before_anything_runs(folder):
    (folder / "zoo").unlink()
    zoo = tiny.zoo(folder / "zoo")
    tiny.save(zoo / "pico-wide", seed=1, vocab=300)
    with pytest.raises(ConfigError, match=r"draft pico-wide has another token map than target pico: it knows 300 ids"):
        cells(folder, ONE_CELL)


def test_all_that_is_missing_is_told_at_once(folder):
    text = ONE_CELL.replace("{model: pico}", "{model: pico}, {model: picco}").replace("draft: pico-wide", "draft: wide")
    with pytest.raises(ConfigError) as error:
        cells(folder, text)
    lines = str(error.value).splitlines()
    assert lines == [
        "unknown model 'wide'. Did you mean 'pico-wide'? A hub id reads owner/name.",
        "unknown model 'picco'. Did you mean 'pico'? A hub id reads owner/name.",
    ]


def test_a_gpu_that_is_not_there_is_named_in_one_line(folder):
    with pytest.raises(ConfigError, match=r"^machine.device is cuda:7, but torch finds .*; use cpu or auto$"):
        cells(folder, ONE_CELL.replace("device: cpu", "device: 'cuda:7'"))


def test_synthetic_rates_reach_the_rule_as_they_are_written():
    rule = rule_of(DecodeSettings.model_validate({"rule": {"synthetic": {"rates": (0.8, 0.5)}}}))
    assert rule.survival(4) == [0.8, 0.5, 0.0, 0.0]


def test_typical_thresholds_reach_the_rule_as_they_are_written():
    written = ("typical", {"typical": {"delta": 0.5}})
    rules = [rule_of(DecodeSettings.model_validate({"rule": rule})) for rule in written]
    assert rules == [Typical(epsilon=0.09, delta=0.3), Typical(epsilon=0.09, delta=0.5)]


def test_other_thresholds_are_other_trials_and_defaults_are_the_same_written_or_not(folder):
    def trials(rule):
        text = ONE_CELL.replace("batch_size: 2", f"batch_size: 2, temperature: 0.8, rule: {rule}")
        return set(cells(folder, text.replace("temperature: 0.0, ", ""))[0].trial_ids.values())

    assert trials("typical") == trials("{typical: {epsilon: 0.09}}")
    assert not trials("typical") & trials("{typical: {epsilon: 0.1}}")


def test_cells_that_differ_in_a_threshold_alone_have_names_that_say_so(folder):
    rules = "rule: [typical, {typical: {delta: 0.5}}, redrafter_paper]"
    names = [cell.name for cell in cells(folder, ONE_CELL.replace("batch_size: 2", f"batch_size: 2, {rules}"))]
    words = ["typical epsilon=0.09 delta=0.3", "typical epsilon=0.09 delta=0.5", "redrafter_paper"]
    assert [word in name for word, name in zip(words, names, strict=True)] == [True] * 3


def test_simulated_acceptance_ignores_eos(folder):
    text = ONE_CELL.replace("batch_size: 2", "batch_size: 2, rule: {synthetic: {mean_length: 2.0}}")
    assert cells(folder, text)[0].decoding.eos_ids == ()
    assert cells(folder, ONE_CELL)[0].decoding.eos_ids == (tiny.tokenizer().eos_token_id,)


def test_what_cells_share_is_looked_for_once(folder):
    asked = []

    def reader(settings, target, **room):
        asked.append((settings.count, room["max_new_tokens"]))
        return load_prompts(settings, target, **room)

    text = TWO_CELLS.replace("batch_size: 2", "batch_size: [1, 2, 4]").replace(
        "max_new_tokens: 10", "max_new_tokens: [4, 8]"
    )
    found = ready(plan_of(folder, text), folder / "zoo", reader)
    assert len(found) == 12
    assert asked == [(5, 4), (5, 8)]
    assert len({id(cell.target) for cell in found}) == 1


def test_a_fault_that_all_cells_share_is_found_once(folder):
    asked = []

    def reader(settings, target, **room):
        asked.append(settings)
        raise ConfigError("no such file")

    with pytest.raises(ConfigError, match="no such file"):
        ready(plan_of(folder, TWO_CELLS), folder / "zoo", reader)
    assert len(asked) == 1


def test_the_models_of_studies_must_be_there_as_well(folder):
    with pytest.raises(ConfigError, match="unknown model 'pico-wied'"):
        cells(folder, ONE_CELL + "latencies: {models: [pico-wied]}\n")


def test_an_arm_that_is_composed_has_a_draft_and_no_trial(folder):
    text = ONE_CELL.replace("gamma: 2", "gamma: 2, latency_mode: composed") + "traces: {}\nlatencies: {}\n"
    (cell,) = cells(folder, text)
    assert [source.name for source in cell.drafts["draft_model"]] == ["pico-wide"]
    assert "draft_model" not in cell.trial_ids
