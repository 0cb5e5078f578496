"""What a backend offers: lower a `QuantizedCheckpoint`, and read its own files back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from llama_edge.core.artifact import (
    Artifact,
    GraphOperator,
    Interface,
    KVCacheDtype,
    Placement,
    PrefillLengths,
    StoredBytes,
)
from llama_edge.core.errors import ConfigError, UsageError
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.progress import Progress
from llama_edge.core.quantized import QuantizedCheckpoint, QuantizedWeights
from llama_edge.core.recipe import Recipe
from llama_edge.core.runner_values import RunnerValue

#: A float32 cache of this many tokens takes 94 MB in SmolLM2 and 470 MB in Llama 3.2 3B.
DEFAULT_CONTEXT: Final = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerOptions:
    """What a user may ask of a lowering."""

    #: tokens that the KV cache holds; None is `DEFAULT_CONTEXT`, or all that a smaller model holds
    max_context: int | None = None
    #: ONNX Runtime's accuracy_level (0: fp32 activations, 4: int8); None is what the recipe says
    accuracy_level: int | None = None
    #: None is what the backend keeps by itself
    kv_cache: KVCacheDtype | None = None
    #: None is what the backend does by itself
    prefill: PrefillLengths | None = None

    def refuse_prefill(self, backend: str) -> None:
        """For backends whose graphs take any number of tokens.

        Raises:
            UsageError: It was asked for.
        """
        if self.prefill is not None:
            raise UsageError(
                f"--prefill {self.prefill.value} belongs to Core ML (--target ios); {backend} "
                "takes prompts of every length: leave it out"
            )

    def context_for(self, config: ModelConfig) -> int:
        """Tokens that this model's KV cache is to hold.

        Raises:
            ConfigError: More than the model's positions, or none.
        """
        limit = config.max_position_embeddings
        if self.max_context is None:
            return min(DEFAULT_CONTEXT, limit)
        if not 1 <= self.max_context <= limit:
            raise ConfigError(
                f"max_context is {self.max_context}; this model holds 1 to {limit} tokens"
            )
        return self.max_context


def files_as_storage(artifact: Artifact) -> tuple[StoredBytes, ...]:
    """`WrittenArtifact.storage` of backends that do not look into their files: one entry a file."""
    return tuple(
        StoredBytes(dtype="", what=name, size_bytes=(artifact.root / name).stat().st_size, why="")
        for name in artifact.files
    )


class WrittenArtifact(Protocol):
    """A backend's own files, parsed once. Every method raises `ArtifactError` for damaged ones."""

    @property
    def artifact(self) -> Artifact:
        """The files, and how they are called, as they say themselves."""
        ...

    def weights(self) -> QuantizedWeights:
        """Quantized values, scales and norms, each read when it is asked for."""
        ...

    def placement(self) -> Placement:
        """Which share of the graph runs on the backend's accelerated path."""
        ...

    def interface(self) -> Interface:
        """Inputs, outputs and cache layout as the files declare them."""
        ...

    def storage(self) -> tuple[StoredBytes, ...]:
        """What the files' bytes are; the sizes sum to `Artifact.size_bytes`."""
        ...

    def operators(self) -> tuple[GraphOperator, ...]:
        """Every operator of the graph, and its constants that are no weights."""
        ...

    def end_tokens(self) -> tuple[int, ...]:
        """The ids that the files tell their runner to stop at."""
        ...


class Exporter(Protocol):
    """One backend."""

    def check_supported(self, config: ModelConfig, recipe: Recipe, options: LowerOptions) -> None:
        """Fail before any work when this backend cannot do what is asked.

        Args:
            config: The model, rotated or not yet.
            recipe: How it is, or is going to be, quantized.
            options: What the user asks of the lowering.

        Raises:
            ConfigError: The model's shape, the recipe or the context does not fit.
            UsageError: An option that this backend does not have, or that contradicts the recipe;
                a recipe whose activations this backend cannot keep.
        """
        ...

    def lower(
        self,
        checkpoint: QuantizedCheckpoint,
        out_dir: Path,
        options: LowerOptions,
        progress: Progress,
    ) -> Artifact:
        """Write the artifact's files into the existing folder `out_dir`.

        Raises:
            ExportError: The graph cannot be written as this backend needs it.
        """
        ...

    def open(self, path: Path) -> WrittenArtifact:
        """The artifact in the folder `path`, or with the main file `path`.

        Raises:
            ArtifactError: There is none, or it is damaged.
        """
        ...

    def runner_values(self, path: Path) -> tuple[RunnerValue, ...]:
        """What the files in the folder `path`, or the main file `path`, tell their runner.

        Files that another program wrote are read too, as far as they follow the same format.

        Raises:
            ArtifactError: There is no such file, or it is damaged.
        """
        ...
