"""How commands take a MODEL, with adapters, and a revision of one that is a Hugging Face id."""

from collections.abc import Sequence
from typing import Annotated

import typer

from llama_edge.core.errors import UsageError

Model = Annotated[
    str,
    typer.Argument(
        help="A built-in name, a folder or file on this machine, or a Hugging Face id, whose "
        "GGUF models are named as OWNER/NAME:Q4_K_M. MODEL+ADAPTER is one with a LoRA adapter."
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(
        help="A branch, tag or commit of a MODEL that is a Hugging Face id; by default main."
    ),
]

Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        help="A LoRA adapter as PEFT saves it, a folder or a Hugging Face id, that is merged into "
        "MODEL; as often as needed, in this order.",
    ),
]


def with_adapters(model: str, adapters: Sequence[str] | None) -> str:
    """A MODEL with adapters."""
    from llama_edge.checkpoints.adapter_config import JOINT

    return JOINT.join([model, *(adapters or ())])


def revised(model: str, revision: str | None) -> str:
    """A MODEL at a revision.

    Raises:
        UsageError: It is no Hugging Face id.
    """
    if revision is None:
        return model
    from llama_edge.checkpoints import split_adapters
    from llama_edge.checkpoints.hub import with_revision

    base, adapters = split_adapters(model)
    return with_adapters(with_revision(base, revision), adapters)


def all_revised(models: tuple[str | None, ...], revision: str | None) -> list[str | None]:
    """Those of several MODELs that are Hugging Face ids at a revision, the others as they are.

    Raises:
        UsageError: None of them is.
    """
    if revision is None:
        return list(models)
    from llama_edge.checkpoints import split_adapters
    from llama_edge.checkpoints.hub import is_repository

    of_hub = {
        model for model in models if model is not None and is_repository(split_adapters(model)[0])
    }
    if not of_hub:
        raise UsageError(f"--revision {revision}: no MODEL here is a Hugging Face id; leave it out")
    return [
        revised(model, revision) if model is not None and model in of_hub else model
        for model in models
    ]
