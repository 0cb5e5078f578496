"""`models`, `targets`, `recipes`: what the other commands accept."""

from dataclasses import asdict
from typing import Annotated

from llama_edge.cli.console import JsonOption, print_json, print_table


def models(as_json: Annotated[bool, JsonOption] = False) -> None:
    """List the built-in models; a folder, a file or a Hugging Face id is a MODEL as well."""
    from llama_edge.checkpoints.builtin import BUILTIN_MODELS

    if as_json:
        print_json({"models": [{"name": n, **asdict(m)} for n, m in BUILTIN_MODELS.items()]})
        return
    rows = [(name, model.summary, model.licence) for name, model in BUILTIN_MODELS.items()]
    print_table("", ("model", "what it is", "licence"), rows)


def targets(as_json: Annotated[bool, JsonOption] = False) -> None:
    """List the targets, and what nobody has checked about each."""
    from llama_edge.export import TARGETS

    if as_json:
        print_json({"targets": [asdict(target) for target in TARGETS.values()]})
        return
    rows = [(target.name, target.summary, target.not_verified) for target in TARGETS.values()]
    print_table("", ("target", "what it writes", "not verified"), rows)


def recipes(as_json: Annotated[bool, JsonOption] = False) -> None:
    """List the quantization recipes."""
    from llama_edge.quantize import DEFAULT_RECIPE, RECIPES

    if as_json:
        described = [recipe.to_json() for recipe in RECIPES.values()]
        print_json({"recipes": described, "default": DEFAULT_RECIPE})
        return
    rows = [
        (name + (" (default)" if name == DEFAULT_RECIPE else ""), recipe.summary)
        for name, recipe in RECIPES.items()
    ]
    print_table("", ("recipe", "what it does"), rows)
