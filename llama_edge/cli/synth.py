"""`synth`: a random checkpoint of a published shape, for who has no access to the weights."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from llama_edge.cli.console import (
    JsonOption,
    print_json,
    print_next,
    print_table,
    progress_on_stderr,
)
from llama_edge.core.model_shapes import SHAPES, get_shape


def synth(
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    *,
    like: Annotated[str, typer.Option(help=f"One of: {', '.join(SHAPES)}.")],
    layers: Annotated[
        int | None,
        typer.Option(min=1, help="Fewer (or more) layers; by default as many as the model has."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the weights.")] = 0,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Meta's `tokenizer.model` of that model; by default one is made up."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is at OUT.")] = False,
    as_json: Annotated[bool, JsonOption] = False,
) -> None:
    """Write random weights in the exact shape of a model; text from them means nothing."""
    from llama_edge.checkpoints.meta_text import read_meta_text
    from llama_edge.checkpoints.synthetic import write_synthetic
    from llama_edge.core.files import output_folder
    from llama_edge.core.ownership import RECORD_FILE

    config = get_shape(like).config
    if layers is not None:
        config = replace(config, num_hidden_layers=layers)
    text = None if tokenizer is None else read_meta_text(tokenizer)
    with output_folder(out, force=force) as folder, progress_on_stderr() as progress:
        write_synthetic(folder, like, config, seed, progress, text)
    files = {
        file.name: file.stat().st_size for file in sorted(out.iterdir()) if file.name != RECORD_FILE
    }
    size_bytes = sum(files.values())
    if as_json:
        print_json(
            {
                "checkpoint": str(out),
                "like": like,
                "seed": seed,
                "config": config.to_json(),
                "size_bytes": size_bytes,
                "files": files,
            }
        )
        return
    rows = [
        ("folder", str(out)),
        ("seed", str(seed)),
        ("layers", f"{config.num_hidden_layers} of {get_shape(like).config.num_hidden_layers}"),
        ("size", f"{size_bytes / 2**20:.1f} MiB in {len(files)} files"),
        ("what it is good for", "sizes, time and memory; its text and its quality mean nothing"),
    ]
    print_table("", ("random weights", like), rows)
    print_next(f"export {shlex.quote(str(out))} --target android --recipe w4a8-rtn")
