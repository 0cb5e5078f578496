"""`models`, `targets`, `recipes`: what the other commands accept."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from llama_edge.cli.console import JsonOption, print_json, print_table, say
from llama_edge.core.errors import UsageError

if TYPE_CHECKING:
    from llama_edge.checkpoints.known_models import KnownModel


def models(
    model: Annotated[
        str | None, typer.Argument(help="A row's name or id: shows all that is known of it.")
    ] = None,
    as_json: Annotated[bool, JsonOption] = False,
) -> None:
    """List models that people take to phones, the built-in one first, and what is known of each.

    Any other Llama, Qwen2.5 or Qwen3 is a MODEL as well: a folder, a file or a Hugging Face id.
    """
    from llama_edge.checkpoints.builtin import BUILTIN_MODELS
    from llama_edge.checkpoints.known_models import KNOWN_MODELS, get_known_model

    if model is not None:
        published = BUILTIN_MODELS[model].published if model in BUILTIN_MODELS else model
        row = get_known_model(published)
        if as_json:
            print_json(asdict(row))
        else:
            print_table("", (row.name, row.id), _known(row))
        return
    if as_json:
        print_json(
            {
                "models": [{"name": n, **asdict(m)} for n, m in BUILTIN_MODELS.items()],
                "known_models": [asdict(row) for row in KNOWN_MODELS.values()],
            }
        )
        return
    rows = [
        *((name, "built in", one.summary, one.licence) for name, one in BUILTIN_MODELS.items()),
        *((row.name, row.id, row.shape, row.licence.name) for row in KNOWN_MODELS.values()),
    ]
    print_table("", ("model", "Hugging Face id", "what it is", "licence"), rows)
    say("`llama-edge models MODEL` says what was verified here of one, and what its licence asks.")


def _known(row: "KnownModel") -> list[tuple[str, str]]:
    licence = row.licence
    duties = [
        ("show", licence.shown),
        ("NOTICE", licence.notice),
        ("a derived model's name begins with", licence.name_prefix),
        ("rules of use", licence.policy_url),
    ]
    return [
        ("what it is", row.shape),
        ("dialogs", row.template),
        ("an answer ends at", " ".join(row.stop_tokens)),
        ("verified here", row.verified),
        ("licence", f"{licence.name}, {licence.url}"),
        *((what, text) for what, text in duties if text),
    ]


def targets(as_json: Annotated[bool, JsonOption] = False) -> None:
    """List the targets, their formats, and what nobody has checked about each."""
    from llama_edge.backends import TARGETS

    formats = [(target.name, one) for target in TARGETS.values() for one in target.formats]
    if as_json:
        print_json({"targets": [{"name": name, **asdict(one)} for name, one in formats]})
        return
    rows = [(name, one.backend, one.summary, one.not_verified) for name, one in formats]
    print_table("", ("target", "format", "what it writes", "not verified"), rows)


def recipes(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME|FILE",
            help="Shows every field of one; with --json as a file to start a recipe from.",
        ),
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of recipe files.")
    ] = False,
    as_json: Annotated[bool, JsonOption] = False,
) -> None:
    """List the quantization recipes, and what each measured on the embedded model."""
    from llama_edge.quantize.recipe_file import find_recipe, recipe_file, recipe_schema

    if schema and recipe is not None:
        raise UsageError("--schema is of every recipe file; leave the recipe out")
    if schema:
        print_json(recipe_schema())
    elif recipe is None:
        _list_recipes(as_json=as_json)
    elif as_json:
        print_json(recipe_file(find_recipe(recipe)))
    else:
        found = find_recipe(recipe)
        fields = found.to_json().items()
        rows = [(name, json.dumps(value)) for name, value in fields if name != "name"]
        print_table("", ("recipe", found.name), rows)


def _list_recipes(*, as_json: bool) -> None:
    from llama_edge.quantize import DEFAULT_RECIPE, RECIPES
    from llama_edge.quantize.measured import read_measurements

    measurements = read_measurements()
    known = measurements.recipes
    if as_json:
        described = [
            {**recipe.to_json(), "measured": asdict(known[name]) if name in known else None}
            for name, recipe in RECIPES.items()
        ]
        print_json(
            {
                "recipes": described,
                "default": DEFAULT_RECIPE,
                "measured_on": {"model": measurements.model, "machine": measurements.machine},
            }
        )
        return
    rows = []
    for name, recipe in RECIPES.items():
        shown = name + (" (default)" if name == DEFAULT_RECIPE else "")
        if name in known:
            found = known[name]
            bits, minutes = f"{found.bits_per_weight:.2f}", f"{found.cpu_minutes:.1f}"
            rows.append((shown, recipe.summary, bits, minutes, f"{found.mean_kl:.3f}"))
        else:
            rows.append((shown, recipe.summary, "", "", "not measured"))
    header = ("recipe", "what it does", "bits per weight", "CPU minutes", "KL")
    print_table("", header, rows)
    say(
        f"Measured on {measurements.model}, {measurements.machine}. KL: mean, in nats, to full "
        "precision, on prompts in eight languages; the eager reference ran.",
        "`llama-edge recipes NAME --json` prints one as a file, which `--recipe` takes as well.",
    )
