"""The Core ML backend as an `Exporter`."""

from pathlib import Path

from llama_edge.backends.base import LowerOptions
from llama_edge.backends.coreml.metadata import Lowering
from llama_edge.backends.coreml.operators import read_operators
from llama_edge.backends.coreml.package import PACKAGE
from llama_edge.backends.coreml.program import read_interface, read_placement
from llama_edge.backends.coreml.reader import (
    PackageWeights,
    package_path,
    read_artifact,
    read_end_tokens,
    require_files,
)
from llama_edge.backends.coreml.runner import read_runner_values
from llama_edge.backends.coreml.storage import read_storage
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
from llama_edge.core.files import require_free_space
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.progress import Progress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.core.recipe import Recipe
from llama_edge.core.runner_values import RunnerValue
from llama_edge.formats.mlpackage import MLPackage
from llama_edge.formats.quantized_checkpoint import WEIGHTS_FILE

#: Tokens of one call of the function `prefill`: enough to keep a matrix unit busy, and few enough
#: that a prompt's last call, which is filled up to it, wastes little.
FIXED_PREFILL = 64
#: As much as the android target takes at once: logits of more tokens would only take memory.
MAX_PREFILL = 512


class CoreMLExporter:
    """Writes a stateful `.mlpackage`. Activations stay in floating point, whatever the recipe."""

    def check_supported(self, config: ModelConfig, recipe: Recipe, options: LowerOptions) -> None:
        """See `Exporter`."""
        if options.accuracy_level is not None:
            raise UsageError(
                f"--accuracy-level {options.accuracy_level} belongs to the onnx target; Core ML "
                "keeps activations in floating point: leave it out"
            )
        if options.kv_cache not in (None, KVCacheDtype.FLOAT16):
            raise UsageError(
                f"--kv-cache {options.kv_cache} belongs to another target; the ios target keeps "
                "keys and values in float16: leave it out"
            )
        max_context = options.context_for(config)
        if options.prefill is PrefillLengths.FIXED and max_context < FIXED_PREFILL:
            raise ConfigError(
                f"max_context is {max_context}; --prefill fixed takes {FIXED_PREFILL} tokens at a "
                "time: give a larger --max-context, or --prefill flexible"
            )
        if recipe.weight_bits != 4:
            raise ConfigError(
                f"recipe {recipe.name}: {recipe.weight_bits}-bit linears; the Core ML backend "
                "writes 4-bit ones: choose another recipe"
            )

    def lower(
        self,
        checkpoint: QuantizedCheckpoint,
        out_dir: Path,
        options: LowerOptions,
        progress: Progress,
    ) -> Artifact:
        """See `Exporter`."""
        # coremltools takes 6 s to import, and whoever only reads a package does without it.
        from llama_edge.backends.coreml.lower import write_package

        self.check_supported(checkpoint.config, checkpoint.recipe, options)
        max_context = options.context_for(checkpoint.config)
        # The same packed codes and scales: the two differ by rope tables and headers.
        require_free_space(out_dir, (checkpoint.root / WEIGHTS_FILE).stat().st_size)
        prefill = options.prefill or PrefillLengths.FLEXIBLE
        lowering = Lowering(
            max_context=max_context,
            max_prefill=(
                FIXED_PREFILL if prefill is PrefillLengths.FIXED else min(MAX_PREFILL, max_context)
            ),
            prefill=prefill,
        )
        write_package(checkpoint, out_dir, lowering, progress)
        return self.open(out_dir).artifact

    def open(self, path: Path) -> "WrittenPackage":
        """See `Exporter`."""
        package = package_path(path)
        require_files(package)
        return WrittenPackage(MLPackage(package))

    def runner_values(self, path: Path) -> tuple[RunnerValue, ...]:
        """See `Exporter`."""
        return read_runner_values(path if path.suffix == Path(PACKAGE).suffix else path / PACKAGE)


class WrittenPackage:
    """A `.mlpackage`, as `WrittenArtifact`."""

    def __init__(self, package: MLPackage) -> None:
        self._package = package
        self.artifact = read_artifact(package)

    def weights(self) -> PackageWeights:
        """See `WrittenArtifact`."""
        return PackageWeights(self._package)

    def placement(self) -> Placement:
        """See `WrittenArtifact`."""
        return read_placement(self._package)

    def interface(self) -> Interface:
        """See `WrittenArtifact`."""
        return read_interface(self._package)

    def storage(self) -> tuple[StoredBytes, ...]:
        """See `WrittenArtifact`."""
        return read_storage(self._package)

    def operators(self) -> tuple[GraphOperator, ...]:
        """See `WrittenArtifact`."""
        return read_operators(self._package)

    def end_tokens(self) -> tuple[int, ...]:
        """See `WrittenArtifact`."""
        return read_end_tokens(self._package)
