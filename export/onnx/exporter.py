"""The ONNX backend as an `Exporter`."""

from pathlib import Path
from typing import Final

from llama_edge.backends.base import LowerOptions, files_as_storage
from llama_edge.backends.onnx.external_data import MODEL_FILE, load_graph
from llama_edge.backends.onnx.genai_config import read_end_tokens, write_genai_config
from llama_edge.backends.onnx.graph import INT8_BLOCK
from llama_edge.backends.onnx.lower import write_model
from llama_edge.backends.onnx.metadata import ACTIVATIONS, Lowering
from llama_edge.backends.onnx.operators import read_operators
from llama_edge.backends.onnx.reader import (
    OnnxWeights,
    read_artifact,
    read_interface,
    read_placement,
)
from llama_edge.backends.onnx.runner import read_runner_values
from llama_edge.core.artifact import (
    ActivationQuantization,
    Artifact,
    GraphOperator,
    Interface,
    KVCacheDtype,
    Placement,
    StoredBytes,
)
from llama_edge.core.errors import ConfigError, UsageError
from llama_edge.core.files import require_free_space
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.progress import Progress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.core.recipe import Recipe
from llama_edge.core.runner_values import RunnerValue
from llama_edge.formats.quantized_checkpoint import WEIGHTS_FILE
from llama_edge.models.reference import ACTIVATION_BLOCK

#: float32 activations, and int8 ones: the fastest, on phones as on desktops.
_FLOAT_LEVEL: Final = 0
_INT8_LEVEL: Final = 4
#: The blocks that MatMulNBits takes: powers of two from 16.
_MIN_BLOCK: Final = 16
#: With RoPE, which is done in it, GroupQueryAttention refuses other heads when the model runs.
_HEAD_MULTIPLE: Final = 16


class OnnxExporter:
    """Writes a folder that ONNX Runtime GenAI opens."""

    def check_supported(self, config: ModelConfig, recipe: Recipe, options: LowerOptions) -> None:
        """See `Exporter`."""
        level = _accuracy_level(recipe, options)
        if options.kv_cache not in (None, KVCacheDtype.FLOAT32):
            raise UsageError(
                f"--kv-cache {options.kv_cache} belongs to another target; the onnx "
                "target keeps keys and values in float32: leave it out"
            )
        options.refuse_prefill("the onnx target")
        options.context_for(config)
        if (recipe.weight_bits, recipe.table_bits) != (4, 8):
            raise ConfigError(
                f"recipe {recipe.name}: {recipe.weight_bits}-bit linears with "
                f"{recipe.table_bits}-bit tables; the ONNX backend writes 4 and 8: "
                "choose another recipe"
            )
        group = recipe.group_size
        if group < _MIN_BLOCK or group & (group - 1):
            raise ConfigError(
                f"recipe {recipe.name}: group_size {group}; MatMulNBits takes powers of two "
                f"from {_MIN_BLOCK}: choose another recipe"
            )
        if ACTIVATIONS[level] is ActivationQuantization.INT8_PER_BLOCK and (
            group != ACTIVATION_BLOCK
        ):
            raise ConfigError(
                f"recipe {recipe.name}: group_size {group}; int8 activations are checked in "
                f"blocks of {ACTIVATION_BLOCK}: choose accuracy_level 0, or another recipe"
            )
        _check_widths(config, recipe)

    def lower(
        self,
        checkpoint: QuantizedCheckpoint,
        out_dir: Path,
        options: LowerOptions,
        progress: Progress,
    ) -> Artifact:
        """See `Exporter`."""
        self.check_supported(checkpoint.config, checkpoint.recipe, options)
        max_context = options.context_for(checkpoint.config)
        # The same packed codes and scales: the two files differ by rope tables and headers.
        require_free_space(out_dir, (checkpoint.root / WEIGHTS_FILE).stat().st_size)
        lowering = Lowering(
            accuracy_level=_accuracy_level(checkpoint.recipe, options),
            group_size=checkpoint.recipe.group_size,
            max_context=max_context,
        )
        write_model(checkpoint, out_dir, lowering, progress)
        write_genai_config(out_dir, checkpoint.config, checkpoint.text, max_context)
        return self.open(out_dir).artifact

    def open(self, path: Path) -> "WrittenOnnx":
        """See `Exporter`."""
        return WrittenOnnx(path.parent if path.is_file() else path)

    def runner_values(self, path: Path) -> tuple[RunnerValue, ...]:
        """See `Exporter`."""
        return read_runner_values(path.parent if path.is_file() else path)


class WrittenOnnx:
    """A folder with `model.onnx`, as `WrittenArtifact`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / MODEL_FILE
        self._model = load_graph(self._path)
        self.artifact = read_artifact(folder, self._model)

    def weights(self) -> OnnxWeights:
        """See `WrittenArtifact`."""
        return OnnxWeights(self._path, self._model)

    def placement(self) -> Placement:
        """See `WrittenArtifact`."""
        return read_placement(self._path, self._model.graph)

    def interface(self) -> Interface:
        """See `WrittenArtifact`."""
        return read_interface(self._path, self._model.graph)

    def storage(self) -> tuple[StoredBytes, ...]:
        """See `WrittenArtifact`."""
        return files_as_storage(self.artifact)

    def operators(self) -> tuple[GraphOperator, ...]:
        """See `WrittenArtifact`."""
        return read_operators(self._path, self._model.graph)

    def end_tokens(self) -> tuple[int, ...]:
        """See `WrittenArtifact`."""
        return read_end_tokens(self.artifact.root)


def _check_widths(config: ModelConfig, recipe: Recipe) -> None:
    if config.head_dim % _HEAD_MULTIPLE:
        raise ConfigError(
            f"config: head_dim {config.head_dim} is not a multiple of {_HEAD_MULTIPLE}, which ONNX "
            "Runtime's GroupQueryAttention needs; choose --target android or ios"
        )
    widths = {"hidden_size": config.hidden_size}
    if recipe.extra_bytes:
        widths |= {
            "query_size": config.query_size,
            "intermediate_size": config.intermediate_size,
        }
    for name, width in widths.items():
        if width % INT8_BLOCK:
            raise ConfigError(
                f"config: {name} {width} is not a multiple of {INT8_BLOCK}, MatMulNBits' block "
                "in int8 linears"
            )


def _accuracy_level(recipe: Recipe, options: LowerOptions) -> int:
    """What the user asks for, else what the recipe says; never coarser than the recipe."""
    weight_only = recipe.activation_bits is None
    if options.accuracy_level is None:
        return _FLOAT_LEVEL if weight_only else _INT8_LEVEL
    level = options.accuracy_level
    if level not in ACTIVATIONS:
        raise UsageError(f"accuracy_level is {level}; choose one of {sorted(ACTIVATIONS)}")
    if weight_only and ACTIVATIONS[level] is not ActivationQuantization.NONE:
        raise UsageError(
            f"--accuracy-level {level} rounds activations to int8; recipe {recipe.name} leaves "
            f"them in floating point: leave it out, give {_FLOAT_LEVEL}, or choose a recipe with "
            "int8 activations"
        )
    return level
