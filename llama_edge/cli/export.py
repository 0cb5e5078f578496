"""`export` and `quantize`: the commands that write something."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from llama_edge.backends import TARGETS
from llama_edge.backends.base import DEFAULT_CONTEXT, LowerOptions
from llama_edge.cli.console import (
    JsonOption,
    print_json,
    print_next,
    print_table,
    progress_on_stderr,
)
from llama_edge.cli.model import Adapters, Model, Revision, revised, with_adapters
from llama_edge.cli.suite import PerTaskOption, RequireOption, SuiteOption
from llama_edge.core.artifact import KVCacheDtype, PrefillLengths
from llama_edge.core.recipe import Device
from llama_edge.quantize import DEFAULT_RECIPE
from llama_edge.suites.request import suite_request

Recipe = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="How to quantize: a recipe that `llama-edge recipes` lists, or a JSON file of your "
        f"own (docs/recipes.md). By default {DEFAULT_RECIPE}, or what a checkpoint that came "
        "quantized is.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        help="Of all that the recipe draws at random: the rotations' signs, the text that the "
        "model writes to calibrate on. By default the recipe's, 0."
    ),
]
Calibration = Annotated[
    list[Path] | None,
    typer.Option(
        help="UTF-8 text to calibrate on, as often as needed; by default the model writes its own."
    ),
]
TextCache = Annotated[
    Path | None,
    typer.Option(
        help="A file for the text that the model writes to calibrate on: read if it is there, "
        "written if not, so that it serves other recipes and machines."
    ),
]
LearningDevice = Annotated[
    Device,
    typer.Option(
        "--device",
        help="Where a recipe calibrates that does so; mps is the GPU of Apple silicon.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace what is at --out.")]


def export(
    model: Model,
    *,
    target: Annotated[str, typer.Option(help=f"One of: {', '.join(TARGETS)}.")],
    revision: Revision = None,
    adapter: Adapters = None,
    file_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="What to write for the target: ios has coreml (its default) and executorch; "
            "`llama-edge targets` lists all.",
        ),
    ] = None,
    recipe: Recipe = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to; by default bundles/MODEL-TARGET.")
    ] = None,
    max_context: Annotated[
        int | None,
        typer.Option(
            help=f"Tokens that the KV cache holds; by default {DEFAULT_CONTEXT}, or all that a "
            "smaller model holds."
        ),
    ] = None,
    accuracy_level: Annotated[
        int | None,
        typer.Option(
            help="onnx only: 0 keeps activations in float32, 4 rounds them to int8; by default "
            "what the recipe says."
        ),
    ] = None,
    kv_cache: Annotated[
        KVCacheDtype | None,
        typer.Option(
            help="executorch only: int8 keeps keys and values in int8, a quarter of the memory; by "
            "default float32, float16 in Core ML."
        ),
    ] = None,
    prefill: Annotated[
        PrefillLengths | None,
        typer.Option(
            help="coreml only: flexible (its default) takes any number of tokens; fixed writes two "
            "functions, decode and prefill, whose sizes are all fixed, for the Neural Engine."
        ),
    ] = None,
    calibration: Calibration = None,
    text_cache: TextCache = None,
    seed: Seed = None,
    device: LearningDevice = Device.CPU,
    suite: SuiteOption = None,
    require: RequireOption = None,
    per_task: PerTaskOption = None,
    force: Force = False,
    as_json: Annotated[bool, JsonOption] = False,
) -> None:
    """Quantize, lower, run what was written, and keep it only if it proves right."""
    from llama_edge.cli.report import print_bundles
    from llama_edge.pipeline.export import ExportRequest, export_model

    options = LowerOptions(
        max_context=max_context,
        accuracy_level=accuracy_level,
        kv_cache=kv_cache,
        prefill=prefill,
    )
    request = ExportRequest(
        model=with_adapters(revised(model, revision), adapter),
        target=target,
        format=file_format,
        recipe=recipe,
        calibration=tuple(calibration or ()),
        text_cache=text_cache,
        seed=seed,
        device=device,
        out=out,
        options=options,
        suite=suite_request(suite, require, per_task),
        force=force,
    )
    with progress_on_stderr() as progress:
        bundle = export_model(request, progress)
    if as_json:
        print_json({"bundle": str(bundle.root), "manifest": bundle.manifest.to_json()})
        return
    print_bundles([bundle])


def quantize(
    model: Model,
    *,
    revision: Revision = None,
    adapter: Adapters = None,
    recipe: Recipe = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to; by default quantized/MODEL-RECIPE.")
    ] = None,
    calibration: Calibration = None,
    text_cache: TextCache = None,
    seed: Seed = None,
    device: LearningDevice = Device.CPU,
    force: Force = False,
    as_json: Annotated[bool, JsonOption] = False,
) -> None:
    """Write the quantized values and scales that every backend shares, for `inspect` to read."""
    from llama_edge.cli.report import scales_line
    from llama_edge.pipeline.quantize import QuantizeRequest, quantize_model

    request = QuantizeRequest(
        model=with_adapters(revised(model, revision), adapter),
        recipe=recipe,
        calibration=tuple(calibration or ()),
        text_cache=text_cache,
        seed=seed,
        device=device,
        out=out,
        force=force,
    )
    with progress_on_stderr() as progress:
        checkpoint = quantize_model(request, progress)
    rounding = checkpoint.scale_rounding
    size_bytes = sum(file.stat().st_size for file in checkpoint.root.iterdir())
    if as_json:
        print_json(
            {
                "quantized": str(checkpoint.root),
                "recipe": checkpoint.recipe.to_json(),
                "size_bytes": size_bytes,
                "source_sha256": checkpoint.source_sha256,
                "note": checkpoint.note,
                "scale_rounding": None if rounding is None else rounding.to_json(),
            }
        )
        return
    rows = [
        ("folder", str(checkpoint.root)),
        ("recipe", checkpoint.recipe.name),
        *([] if checkpoint.note is None else [("note", checkpoint.note)]),
        *([] if rounding is None else [("scales", scales_line(rounding))]),
        ("size", f"{size_bytes / 2**20:.1f} MiB"),
    ]
    print_table("", ("quantized", model), rows)
    print_next(f"inspect {shlex.quote(str(checkpoint.root))}")
