"""How commands take a MODEL, and a revision of one that is a Hugging Face id."""

from typing import Annotated

import typer

from llama_edge.core.errors import UsageError

Model = Annotated[
    str,
    typer.Argument(
        help="A built-in name, a folder or file on this machine, or a Hugging Face id, whose "
        "GGUF models are named as OWNER/NAME:Q4_K_M."
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(
        help="A branch, tag or commit of a MODEL that is a Hugging Face id; by default main."
    ),
]


def revised(model: str, revision: str | None) -> str:
    """A MODEL at a revision.

    Raises:
        UsageError: It is no Hugging Face id.
    """
    if revision is None:
        return model
    from llama_edge.checkpoints.hub import with_revision

    return with_revision(model, revision)


def all_revised(models: tuple[str | None, ...], revision: str | None) -> list[str | None]:
    """Those of several MODELs that are Hugging Face ids at a revision, the others as they are.

    Raises:
        UsageError: None of them is.
    """
    if revision is None:
        return list(models)
    from llama_edge.checkpoints.hub import is_repository, with_revision

    if not any(model is not None and is_repository(model) for model in models):
        raise UsageError(f"--revision {revision}: no MODEL here is a Hugging Face id; leave it out")
    return [
        with_revision(model, revision) if model is not None and is_repository(model) else model
        for model in models
    ]
