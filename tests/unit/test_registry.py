"""specbench.registry"""

import subprocess
import sys
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest
from pydantic import BaseModel, ConfigDict

from methods.autoregressive import Autoregressive
from specbench import registry
from specbench.decode.method import Method
from specbench.errors import ConfigError, ContractError, UnknownNameError, UnsupportedError

BUILT_IN = ["autoregressive", "draft_model", "prompt_lookup", "medusa", "redrafter"]


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Loose(BaseModel):
    pass


class Good(Autoregressive):
    name = "alpha"
    Options = Options


class WithoutOptions(Good):
    Options = None


class WithLooseOptions(Good):
    Options = Loose


class Drafts:
    """A class that a user took for a method."""


class Half(Method):
    name = "alpha"

    def caps(self):
        return None


class Nameless(Method):
    def caps(self):
        return None

    def draft(self, view):
        return None


@pytest.fixture
def install(monkeypatch):
    """Pretend that packages with these entry points are installed."""

    def installed(**entries: str) -> None:
        points = [EntryPoint(name, value, "specbench.methods") for name, value in entries.items()]
        monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "specbench.methods" else [])
        registry._table.cache_clear()

    module = ModuleType("third_party")
    classes = (Good, WithoutOptions, WithLooseOptions, Drafts, Half, Nameless)
    module.__dict__.update({kind.__name__: kind for kind in classes}, number=3)
    monkeypatch.setitem(sys.modules, "third_party", module)
    yield installed
    registry._table.cache_clear()


def test_the_built_in_methods_come_first_in_the_order_of_their_table(install):
    install(zeta="third_party:Good", alpha="third_party:Good")
    assert registry.names() == [*BUILT_IN, *registry.baselines(), "alpha", "zeta"]


def test_a_third_party_method_is_loaded_by_its_entry_point(install):
    install(alpha="third_party:Good")
    assert registry.load("alpha") is Good
    assert registry.options_class("alpha") is Options


def test_every_built_in_method_has_strict_options():
    for name in ("autoregressive", "draft_model", "prompt_lookup"):
        assert registry.options_class(name).model_config["extra"] == "forbid"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("draft_mode", "unknown method 'draft_mode'. Did you mean 'draft_model'? Known: autoregressive, draft_model, "),
        ("zzz", "unknown method 'zzz'. Known: autoregressive, draft_model, "),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_and_all_the_known_ones(install, name, message):
    install()
    with pytest.raises(UnknownNameError) as caught:
        registry.check_name(name)
    assert str(caught.value).startswith(message)
    assert all(known in str(caught.value) for known in registry.names())
    assert caught.value.exit_code == 2


def test_a_name_that_a_built_in_method_has_is_an_error_that_names_both(install):
    install(draft_model="third_party:Good")
    with pytest.raises(ConfigError) as caught:
        registry.load("draft_model")
    assert (
        str(caught.value)
        == registry.origins()["draft_model"]
        == (
            "two methods are called 'draft_model': 'methods.draft_model:DraftModel' and 'third_party:Good' "
            "of an installed package. Uninstall one of them."
        )
    )


def test_a_taken_name_stands_in_no_other_methods_way(install):
    install(draft_model="third_party:Good", alpha="third_party:Good")
    assert registry.load("alpha") is Good
    assert registry.load("prompt_lookup").name == "prompt_lookup"


def test_a_name_that_two_plug_ins_claim_belongs_to_neither(install, monkeypatch):
    points = [EntryPoint("alpha", location, "specbench.methods") for location in ("one:A", "two:B")]
    install()
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    with pytest.raises(ConfigError, match="'one:A' of an installed package and 'two:B' of an installed package"):
        registry.load("alpha")


def test_a_method_that_calls_itself_something_else_is_refused(install):
    install(beta="third_party:Good")
    with pytest.raises(ContractError, match="method 'beta' calls itself 'alpha'"):
        registry.load("beta")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import torch_no_such_thing", "No module named 'torch_no_such_thing'"),
        ("def (", "invalid syntax"),
        ("raise RuntimeError('no licence\\nmore')", "no licence$"),
        ("assert False", "AssertionError"),
    ],
)
def test_whatever_a_plug_in_raises_when_it_is_imported_is_one_line(install, monkeypatch, tmp_path, source, words):
    (tmp_path / "fails_on_import.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    install(alpha="fails_on_import:Method")
    with pytest.raises(UnsupportedError, match=words) as caught:
        registry.load("alpha")
    assert str(caught.value).startswith("method 'alpha' cannot be imported from 'fails_on_import:Method': ")
    assert "\n" not in str(caught.value)
    assert registry.load("prompt_lookup")


@pytest.mark.parametrize(
    ("location", "error", "words"),
    [
        ("third_party:Missing", ContractError, "that is no class"),
        ("third_party:number", ContractError, "that is no class"),
        ("third_party", ContractError, "that is no class"),
        ("third_party:Drafts", ContractError, "does not derive from specbench.decode.method.Method"),
        ("third_party:Half", ContractError, "which lacks draft"),
        ("third_party:Nameless", ContractError, "lacks the class attribute name"),
        ("third_party:WithoutOptions", ContractError, "has no class Options"),
        ("third_party:WithLooseOptions", ContractError, "must be frozen and forbid extra keys"),
        ("no_such_module_here:Method", UnsupportedError, "cannot be imported from 'no_such_module_here:Method'"),
    ],
)
def test_a_method_that_is_not_what_it_should_be_is_refused_by_name(install, location, error, words):
    install(alpha=location)
    with pytest.raises(error, match=words) as caught:
        registry.options_class("alpha")
    assert "'alpha'" in str(caught.value)


def test_a_package_that_shadows_methods_is_named(install, monkeypatch, tmp_path):
    stranger = ModuleType("methods")
    stranger.__file__ = str(tmp_path / "methods" / "__init__.py")
    monkeypatch.setitem(sys.modules, "methods", stranger)
    install()
    with pytest.raises(ConfigError, match=f"another package shadows 'methods': {tmp_path}/methods was imported"):
        registry.names()


def test_an_empty_folder_called_methods_is_named(install, monkeypatch):
    stranger = ModuleType("methods")
    stranger.__file__ = None
    monkeypatch.setitem(sys.modules, "methods", stranger)
    install()
    with pytest.raises(ConfigError, match="an empty folder of that name was imported"):
        registry.names()


def test_names_are_known_without_torch_and_without_pydantic():
    code = (
        "import sys; from specbench import registry; registry.check_name('draft_model'); "
        "print([name for name in ('torch', 'pydantic') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
