"""specbench.registry"""

import subprocess
import sys
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest
from pydantic import BaseModel, ConfigDict

from specbench import registry
from specbench.errors import ConfigError, ContractError, UnknownNameError, UnsupportedError


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Loose(BaseModel):
    pass


class Good:
    Options = Options


class WithoutOptions:
    pass


class WithLooseOptions:
    Options = Loose


@pytest.fixture
def install(monkeypatch):
    """Pretend that packages with these entry points are installed."""

    def installed(**entries: str) -> None:
        points = [EntryPoint(name, value, "specbench.methods") for name, value in entries.items()]
        monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "specbench.methods" else [])
        registry._table.cache_clear()

    module = ModuleType("third_party")
    module.__dict__.update(Good=Good, WithoutOptions=WithoutOptions, WithLooseOptions=WithLooseOptions, number=3)
    monkeypatch.setitem(sys.modules, "third_party", module)
    yield installed
    registry._table.cache_clear()


def test_the_built_in_methods_come_first_in_the_order_of_their_table(install):
    install(zeta="third_party:Good", alpha="third_party:Good")
    assert registry.names() == ["autoregressive", "draft_model", "prompt_lookup", "alpha", "zeta"]


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
        (
            "draft_mode",
            "unknown method 'draft_mode'. Did you mean 'draft_model'? "
            "Known: autoregressive, draft_model, prompt_lookup.",
        ),
        ("zzz", "unknown method 'zzz'. Known: autoregressive, draft_model, prompt_lookup."),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_and_all_the_known_ones(install, name, message):
    install()
    with pytest.raises(UnknownNameError) as caught:
        registry.check_name(name)
    assert (str(caught.value), caught.value.exit_code) == (message, 2)


def test_a_name_that_a_built_in_method_has_is_an_error_that_names_both(install):
    install(draft_model="third_party:Good")
    with pytest.raises(ConfigError) as caught:
        registry.names()
    assert str(caught.value) == (
        "two methods are called 'draft_model': 'methods.draft_model:DraftModel' and 'third_party:Good' "
        "of an installed package. Uninstall one of them."
    )


@pytest.mark.parametrize(
    ("location", "error", "words"),
    [
        ("third_party:Missing", ContractError, "that is no class"),
        ("third_party:number", ContractError, "that is no class"),
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
