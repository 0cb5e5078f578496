"""What a backend offers: lower a `QuantizedCheckpoint`, and read its own files back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llama_edge.core.progress import Progress
from llama_edge.core.types import (
    Artifact,
    Interface,
    Placement,
    QuantizedCheckpoint,
    QuantizedWeights,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerOptions:
    """What a user may ask of a lowering."""

    #: tokens that the KV cache holds; bounded by the model's max_position_embeddings
    max_context: int = 2048
    #: ONNX Runtime's accuracy_level (0: fp32 activations, 4: int8); None is the backend's default
    accuracy_level: int | None = None


class Exporter(Protocol):
    """One backend."""

    def requires(self, checkpoint: QuantizedCheckpoint, options: LowerOptions) -> None:
        """Fail before any work when this backend cannot do what is asked.

        Raises:
            ConfigError: The model's shape or the context does not fit.
            UsageError: An option that this backend does not have.
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

    def read_artifact(self, path: Path) -> Artifact:
        """Describe the artifact in the folder `path`, or with the main file `path`, from it alone.

        Raises:
            ArtifactError: There is none, or it is damaged.
        """
        ...

    def read_weights(self, artifact: Artifact) -> QuantizedWeights:
        """Codes, scales and norms read back out of the written files, lazily.

        Raises:
            ArtifactError: The files are damaged.
        """
        ...

    def placement(self, artifact: Artifact) -> Placement:
        """Which share of the written graph runs on the backend's accelerated path."""
        ...

    def interface(self, artifact: Artifact) -> Interface:
        """Inputs, outputs and cache layout as the written file itself declares them."""
        ...

    def end_tokens(self, artifact: Artifact) -> tuple[int, ...]:
        """The EOS ids that the written files tell the runner which loads them.

        Raises:
            ArtifactError: They tell none, or something else.
        """
        ...
