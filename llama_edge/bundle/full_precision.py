"""The full-precision model that a bundle is compared with."""

from dataclasses import replace

from llama_edge.bundle.manifest import Manifest
from llama_edge.checkpoints import BUILTIN_MODELS, load_checkpoint
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import CheckpointError
from llama_edge.core.recipe import Rounding


def load_full_precision(manifest: Manifest, against: str | None) -> Checkpoint | None:
    """The model that `against` names, or the built-in one that the manifest names, or none.

    A bundle of Meta's own codes may be compared with its checkpoint, or the unquantized release.

    Raises:
        CheckpointError: `against` is not a model of the bundle's shape.
    """
    source = manifest.model.source
    model = against if against is not None else source if source in BUILTIN_MODELS else None
    if model is None:
        return None
    checkpoint = load_checkpoint(model)
    config = manifest.model.config
    if checkpoint.codes is None:
        # Rotations belong to the bundle's graph: the model that it was made from has none.
        config = replace(config, down_proj_rotation=None, head_rotation=False)
        if manifest.recipe.rounding is Rounding.GIVEN:
            # Whoever made the codes had norms and rotations to fold, which parts a tied table.
            config = replace(config, tie_word_embeddings=checkpoint.config.tie_word_embeddings)
    if checkpoint.config != config:
        raise CheckpointError(
            f"{model}: its config is not that of the bundle's source ({source}); "
            "give the model that the bundle was exported from"
        )
    return checkpoint
