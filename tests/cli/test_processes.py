"""The command line under torchrun: one process speaks for all."""

from typer.testing import CliRunner

from specbench.cli import app


def test_only_the_first_of_several_processes_prints(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    printed = {}
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        done = CliRunner().invoke(app, ["check", "nowhere.yaml"])
        printed[rank] = (done.exit_code, bool(done.output))
    assert printed == {"0": (2, True), "1": (2, False)}
