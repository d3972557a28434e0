"""specbench.records.store"""

import errno
import os
import shutil

import pandas as pd
import pyarrow.parquet as pq
import pytest

from specbench.errors import ResultsError
from specbench.records import store as module
from specbench.records.store import Store, run_folders


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "quickstart" / "machine")


def files(store):
    return sorted(path.name for path in store.folder.rglob("*") if path.is_file())


def only_part(store, table):
    return next((store.folder / f"{table}.parquet").iterdir())


def test_opening_a_store_touches_no_disk(store):
    assert not store.folder.exists()
    assert not store.has_block("a")
    assert store.block_keys() == set()


def test_what_was_written_is_read_back(store, request_row, step_row):
    store.write_block("cell a, block 0", [request_row(), request_row(row=1)], [step_row()])
    requests = store.read("requests")
    assert list(requests["row"]) == [0, 1]
    assert list(requests["accepted_per_step"][0]) == [2, 0]
    assert requests["draft"].isna().all()
    assert list(store.read("steps")["step_s"]) == [0.5]
    assert store.has_block("cell a, block 0")
    assert store.block_keys() == {"cell a, block 0"}


def test_a_whole_copy_reads_alike_from_one_file_a_table(store, request_row, step_row, run_row, tmp_path):
    store.write_run(run_row())
    for block in range(3):
        store.write_block(f"block {block}", [request_row(block=block)], [step_row(batch_id=f"b{block}")])
    store.write_block("cut", [request_row(block=3)], [step_row(batch_id="cut")])
    next((store.folder / "requests.parquet").glob("cut-*")).unlink()
    copied = store.copy_whole(tmp_path / "copy")
    assert sorted(path.name for path in copied) == ["requests.parquet", "runs.parquet", "steps.parquet"]
    assert all(path.is_file() for path in copied)
    for table in ("requests", "steps", "runs"):
        pd.testing.assert_frame_equal(Store(tmp_path / "copy").read(table), store.read(table))
    assert "cut" not in set(pq.read_table(tmp_path / "copy" / "steps.parquet")["batch_id"].to_pylist())


def test_keys_that_differ_only_in_odd_characters_are_two_blocks(store, request_row):
    store.write_block("a/b", [request_row()], [])
    store.write_block("a:b", [request_row()], [])
    assert store.block_keys() == {"a/b", "a:b"}


def test_a_block_written_again_replaces_the_first(store, request_row):
    store.write_block("a", [request_row()], [])
    store.write_block("a", [request_row(row=7)], [])
    assert list(store.read("requests")["row"]) == [7]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"colour": 1}, "requests row 0: unknown column 'colour'", id="unknown column"),
        pytest.param({"threads": "many"}, "requests: column 'threads' must be int32", id="wrong type"),
        pytest.param({"accepted_per_step": [2, 99999], "output_tokens": 100004}, "accepted_per_step", id="overflow"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_and_nothing_is_written(store, request_row, step_row, change, message):
    with pytest.raises(ResultsError, match=message):
        store.write_block("a", [request_row() | change], [step_row()])
    assert files(store) == []


def test_killed_between_steps_and_requests_no_half_block_is_seen(store, request_row, step_row, monkeypatch):
    write = module.write_atomically

    def killed(path, data):
        if path.parent.name == "requests.parquet":
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(module, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        store.write_block("a", [request_row()], [step_row()])
    monkeypatch.undo()
    assert not store.has_block("a")
    assert store.read("steps").empty

    store.write_block("a", [request_row()], [step_row(step_s=9.0)])
    assert list(store.read("steps")["step_s"]) == [9.0]


def test_a_block_killed_while_it_is_replaced_does_not_mix_old_and_new(store, request_row, step_row, monkeypatch):
    store.write_block("a", [request_row()], [step_row()])
    monkeypatch.setattr(module, "write_atomically", lambda path, data: None)
    store.write_block("a", [request_row()], [step_row(step_s=9.0)])
    assert not store.has_block("a")


@pytest.mark.parametrize("call", [pytest.param(1, id="in the steps"), pytest.param(3, id="in the requests")])
def test_a_full_disk_leaves_nothing_half_written(store, request_row, step_row, monkeypatch, call):
    # Each file is synchronised, and then its folder: the first call is the steps file, the third the requests
    # file.
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResultsError, match=r"\.parquet: cannot be written: No space left on device\. Free some"):
        store.write_block("a", [request_row()], [step_row()])
    assert files(store) == []
    assert not store.has_block("a")


def test_what_a_killed_writer_left_behind_is_ignored(store, request_row):
    store.write_block("a", [request_row()], [])
    (store.folder / "requests.parquet" / ".b.parquet.tmp").write_bytes(b"half")
    assert len(store.read("requests")) == 1
    assert store.block_keys() == {"a"}


@pytest.mark.parametrize("spoil", [lambda data: data[:-9], lambda data: b"", lambda data: b"\0" * len(data)])
def test_a_corrupt_part_is_named_with_its_remedy(store, request_row, spoil):
    store.write_block("a", [request_row()], [])
    part = only_part(store, "requests")
    part.write_bytes(spoil(part.read_bytes()))
    for look in (lambda: store.read("requests"), lambda: store.has_block("a"), store.block_keys):
        with pytest.raises(ResultsError, match=rf"{part.name}.*Delete it and run again; its block"):
            look()


def test_a_part_with_a_whole_footer_and_spoilt_data_is_named_too(store, request_row):
    store.write_block("a", [request_row()], [])
    part = only_part(store, "requests")
    data = bytearray(part.read_bytes())
    data[4:400] = b"\xff" * 396
    part.write_bytes(bytes(data))
    with pytest.raises(ResultsError, match=rf"{part.name}.*Delete it"):
        store.read("requests")


@pytest.mark.parametrize(("metadata", "found"), [({b"specbench.schema_version": b"99"}, "99"), (None, "none")])
def test_another_schema_version_is_refused_with_both_versions(store, request_row, metadata, found):
    store.write_block("a", [request_row()], [])
    part = only_part(store, "requests")
    pq.write_table(pq.ParquetFile(part).read().replace_schema_metadata(metadata), part)
    with pytest.raises(ResultsError, match=rf"{part.name}: schema version {found}, expected 1\. .*run again"):
        store.read("requests")
    with pytest.raises(ResultsError, match="expected 1"):
        store.has_block("a")


def test_requests_may_be_one_plain_file(store, request_row):
    store.write_block("a", [request_row()], [])
    part = only_part(store, "requests")
    shutil.move(part, store.folder / "plain")
    (store.folder / "requests.parquet").rmdir()
    shutil.move(store.folder / "plain", store.folder / "requests.parquet")
    assert len(store.read("requests")) == 1
    assert run_folders(store.folder.parent) == [store.folder]


def test_a_run_is_replaced_by_its_own_id_and_others_stay(store, run_row):
    store.write_run(run_row())
    store.write_run(run_row(run_id="second"))
    store.write_run(run_row(status="done"))
    runs = store.read("runs").set_index("run_id")["status"]
    assert runs.to_dict() == {"second": "running", "r": "done"}


def test_reading_an_empty_folder_says_so(store):
    with pytest.raises(ResultsError, match="no requests in it"):
        store.read("requests")
    with pytest.raises(ResultsError, match="no table 'blocks'; there are requests, steps, runs"):
        store.read("blocks")


def test_run_folders_are_found_at_any_depth(tmp_path, request_row):
    for name in ("b/one", "a/two", "a/one"):
        Store(tmp_path / name).write_block("a", [request_row()], [])
    assert [str(path.relative_to(tmp_path)) for path in run_folders(tmp_path)] == ["a/one", "a/two", "b/one"]
    assert run_folders(tmp_path / "a" / "one") == [tmp_path / "a" / "one"]


def test_only_the_columns_that_are_asked_for_are_read(store, request_row):
    store.write_block("a", [request_row()], [])
    assert list(store.read("requests", ["arm", "row"]).columns) == ["arm", "row"]


def test_a_column_that_a_part_is_too_old_for_is_null_in_its_rows(store, request_row):
    store.write_block("a", [request_row(turn=2)], [])
    part = only_part(store, "requests")
    table = pq.read_table(part)
    pq.write_table(table.drop_columns(["turn"]), part)
    store.write_block("b", [request_row(turn=3)], [])
    assert sorted(store.read("requests", ["turn"])["turn"].dropna()) == [3]
    assert len(store.read("requests")) == 2


def test_steps_are_summed_by_batch_and_those_of_an_unfinished_block_left_out(store, request_row, step_row):
    store.write_block("a", [request_row()], [step_row(), step_row(step=1), step_row(batch_id="other")])
    store.write_block("b", [request_row()], [step_row(batch_id="unfinished")])
    next(part for part in (store.folder / "requests.parquet").iterdir() if part.name.startswith("b-")).unlink()
    sums = store.read_step_sums(["step_s"]).set_index("batch_id")
    first = step_row()["batch_id"]
    assert sums["steps"].to_dict() == {first: 2, "other": 1}
    assert sums.loc[first, "step_s"] == 2 * step_row()["step_s"]


def test_a_run_without_steps_sums_to_nothing(store, request_row):
    store.write_block("a", [request_row()], [])
    shutil.rmtree(store.folder / "steps.parquet")
    assert store.read_step_sums(["step_s"]).empty


def test_sums_over_steps_are_null_where_a_part_is_older_than_the_column(store, request_row, step_row):
    store.write_block("k", [request_row()], [step_row()])
    (part,) = (store.folder / "steps.parquet").glob("*.parquet")
    table = pq.read_table(part)
    pq.write_table(table.drop_columns("launch_s"), part)
    sums = store.read_step_sums(["step_s", "launch_s"])
    assert (sums["step_s"].iloc[0], sums["steps"].iloc[0]) == (0.5, 1)
    assert sums["launch_s"].isna().all()
