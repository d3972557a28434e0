"""Commands that say what there is."""

from pathlib import Path

import typer


def list_all() -> None:
    """List the methods, the embedded models, the prompt sources and the experiments."""
    from specbench import registry
    from specbench.config import PROMPT_SOURCES
    from specbench.models.zoo import ZOO
    from specbench.train.recipes import RECIPES

    models = {
        name: f"{recipe.role}, {recipe.shape.layers} layers of width {recipe.shape.hidden}"
        + ("" if (ZOO / name).is_dir() else f"; not built yet: specbench train {name}")
        for name, recipe in RECIPES.items()
    }
    _print_section("methods", dict.fromkeys(registry.names(), ""))
    _print_section("embedded models", models)
    _print_section(
        "prompt sources",
        {
            **PROMPT_SOURCES,
            "FILE.jsonl": "a line each, with the key prompt or turns",
            "FILE.txt": "a prompt a line",
            "OWNER/NAME": "a hub data set",
        },
    )
    _print_section("experiments", _experiments())


def _print_section(title: str, entries: dict[str, str]) -> None:
    typer.echo(f"{title}:")
    width = max(map(len, entries), default=0)
    for name, words in entries.items():
        typer.echo(f"  {name:<{width}}  {words}".rstrip())


def _experiments() -> dict[str, str]:
    """The experiments of the checkout, each with the claim that its first comment states."""
    folder = Path(__file__).parents[2] / "experiments"
    return {path.name: _claim(path) for path in sorted(folder.glob("*.yaml"))}


def _claim(path: Path) -> str:
    first = path.read_text("utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""
