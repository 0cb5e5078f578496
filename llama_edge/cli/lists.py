"""`models`, `targets`, `recipes`: what the other commands accept."""

from dataclasses import asdict
from typing import Annotated

from llama_edge.cli.console import JsonOption, print_json, print_table, say


def models(as_json: Annotated[bool, JsonOption] = False) -> None:
    """List the built-in models; a folder, a file or a Hugging Face id is a MODEL as well."""
    from llama_edge.checkpoints.builtin import BUILTIN_MODELS

    if as_json:
        print_json({"models": [{"name": n, **asdict(m)} for n, m in BUILTIN_MODELS.items()]})
        return
    rows = [(name, model.summary, model.licence) for name, model in BUILTIN_MODELS.items()]
    print_table("", ("model", "what it is", "licence"), rows)


def targets(as_json: Annotated[bool, JsonOption] = False) -> None:
    """List the targets, their formats, and what nobody has checked about each."""
    from llama_edge.backends import TARGETS

    formats = [(target.name, one) for target in TARGETS.values() for one in target.formats]
    if as_json:
        print_json({"targets": [{"name": name, **asdict(one)} for name, one in formats]})
        return
    rows = [(name, one.backend, one.summary, one.not_verified) for name, one in formats]
    print_table("", ("target", "format", "what it writes", "not verified"), rows)


def recipes(as_json: Annotated[bool, JsonOption] = False) -> None:
    """List the quantization recipes, and what each measured on the embedded model."""
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
        "precision, on prompts in eight languages; the eager reference ran."
    )
