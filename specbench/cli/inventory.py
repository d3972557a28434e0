"""Commands that say what there is, and what this machine can do."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specbench.cli.common import Json, print_json
from specbench.errors import SpecbenchError, UnknownNameError, did_you_mean

if TYPE_CHECKING:
    from pydantic import BaseModel

Section = Annotated[
    str | None,
    typer.Argument(help="methods, rules, models, shapes, prompts, experiments or figures.", show_default="all of them"),
]


def list_all(section: Section = None) -> None:
    """List methods with their options, rules, embedded models, shapes, prompt sources, experiments and figures.

    Example: specbench list methods
    """
    sections = {
        "methods": _methods,
        "rules": _rules,
        "models": _models,
        "shapes": _shapes,
        "prompts": _prompts,
        "experiments": _experiments,
        "figures": _figures,
    }
    if section is not None and section not in sections:
        raise UnknownNameError(f"nothing to list under {section!r}. {did_you_mean(section, sections)}")
    if section == "methods":
        _print_methods()
        return
    for name, entries in sections.items():
        if section in {None, name}:
            _print_section(name, entries())


def doctor(as_json: Json = False) -> None:
    """Say what this machine can do, and what to mend; exit 1 where something prevents running.

    Example: specbench doctor
    """
    from specbench.bench.doctor import examine

    findings = list(examine())
    if as_json:
        print_json([vars(finding) for finding in findings])
    else:
        width = max(len(finding.subject) for finding in findings)
        colours = {"ok": typer.colors.GREEN, "note": typer.colors.YELLOW, "problem": typer.colors.RED}
        for finding in findings:
            mark = typer.style(f"{finding.level:<7}", fg=colours[finding.level])
            typer.echo(f"{mark}  {finding.subject:<{width}}  {finding.words}")
            if finding.remedy:
                typer.echo(f"{'':<7}  {'':<{width}}  -> {finding.remedy}")
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(SpecbenchError.exit_code)


def _methods() -> dict[str, str]:
    """Each method with its options on one line; one that is broken with the reason."""
    found = {}
    for name, origin in _origins().items():
        try:
            options = ", ".join(f"{option}{value}" for option, value, _ in _options(name))
        except SpecbenchError as error:
            options = f"of no use: {error}"
        found[name] = "; ".join(filter(None, (options or "no options", origin)))
    return found


def _origins() -> dict[str, str]:
    """Every method and outside baseline with where it comes from; nothing for a built-in one."""
    from specbench import registry

    return registry.origins()


def _options(name: str) -> Iterator[tuple[str, str, str]]:
    """An option's name, its default as an experiment would write it, and its meaning."""
    from specbench.registry import options_class

    for option, info in options_class(name).model_fields.items():
        value = " (required)" if info.is_required() else f"={_shown(info.get_default(call_default_factory=True))}"
        yield option, value, info.description or ""


def _shown(value: "BaseModel | object") -> str:
    plain = value.model_dump(mode="json") if hasattr(value, "model_dump") else value
    return json.dumps(plain).replace('"', "")


def _print_methods() -> None:
    """Each method, its first line of documentation, and an option a line."""
    from specbench import registry

    for name, origin in _origins().items():
        typer.echo(f"{name}{f'  ({origin})' if origin else ''}")
        try:
            method = registry.load(name) if name not in registry.baselines() else registry.load_baseline(name)
            options = list(_options(name))
        except SpecbenchError as error:
            typer.echo(f"  of no use: {error}")
            continue
        typer.echo(f"  {_first_line(method.__doc__)}")
        width = max((len(option + value) for option, value, _ in options), default=0)
        for option, value, meaning in options:
            typer.echo(f"    {option + value:<{width}}  {meaning}".rstrip())


def _rules() -> dict[str, str]:
    from specbench.decode.acceptance import RULES

    return {name: _first_line(rule.__doc__) for name, rule in RULES.items()}


def _models() -> dict[str, str]:
    from specbench.models.drafters import embedded_folder
    from specbench.models.zoo import ZOO
    from specbench.train.drafter_recipes import FAMILY
    from specbench.train.recipes import RECIPES

    found = {}
    for name, recipe in RECIPES.items():
        words = [recipe.role, f"{recipe.shape.layers} layers of width {recipe.shape.hidden}"]
        found[name] = _model(words, ZOO / name, f"{recipe.role} {name}")
    for name, weights in FAMILY.items():
        words = [f"weights of {weights.method} for {weights.target}"]
        found[name] = _model(words, embedded_folder(name), f"{weights.method} {name}")
    return found


def _model(words: list[str], folder: Path, training: str) -> str:
    card = folder / "card.json"
    facts = json.loads(card.read_text("utf-8")) if card.exists() else {}
    words += [f"{facts['parameters'] / 1e6:.1f} M parameters"] if "parameters" in facts else []
    words += [f"held-out loss {facts['held_out_loss']:.2f}"] if facts.get("held_out_loss") else []
    words += [] if folder.is_dir() else [f"not built yet: specbench train {training}"]
    return ", ".join(words)


def _shapes() -> dict[str, str]:
    """Each shape with what it really weighs, whatever it is called."""
    from specbench.models.shapes import SHAPES

    found = {}
    for name, shape in SHAPES.items():
        keys = "" if shape.kv_heads == shape.heads else f" ({shape.kv_heads} of keys and values)"
        words = [
            f"{shape.layers} x {shape.hidden}",
            f"{shape.heads} heads{keys}",
            f"feed-forward {shape.feed_forward}",
            f"{shape.parameters:,} parameters",
            f"{shape.parameters * 4 / 1e9:.3g} GB in float32",
            f"{shape.parameters * 2 / 1e9:.3g} GB in bfloat16 or float16",
        ]
        found[name] = "; ".join(filter(None, (", ".join(words), shape.origin)))
    return found


def _prompts() -> dict[str, str]:
    from specbench.config import PROMPT_FILES, PROMPT_SOURCES

    return {**PROMPT_SOURCES, f"FILE({'|'.join(PROMPT_FILES)})": "your own prompts", "OWNER/NAME": "a hub data set"}


def _experiments() -> dict[str, str]:
    """The experiments of the checkout, each with the claim that its first comment states."""
    folder = Path(__file__).parents[2] / "experiments"
    return {path.relative_to(folder).as_posix(): _claim(path) for path in sorted(folder.rglob("*.yaml"))}


def _claim(path: Path) -> str:
    first = path.read_text("utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _figures() -> dict[str, str]:
    from specbench.report.plots import FIGURES

    return {name: drawing.heading for name, drawing in FIGURES.items()}


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def _print_section(title: str, entries: dict[str, str]) -> None:
    typer.echo(f"{title}:")
    width = max(map(len, entries), default=0)
    for name, words in entries.items():
        typer.echo(f"  {name:<{width}}  {words}".rstrip())
