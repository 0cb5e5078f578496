"""ExecuTorch as one of the backends."""

from collections.abc import Sequence
from pathlib import Path

from executorch.exir import schema

from llama_edge.backends import TARGETS
from llama_edge.backends.base import LowerOptions, files_as_storage
from llama_edge.backends.executorch.lower import PTE_FILE, lower_to_pte
from llama_edge.backends.executorch.operators import read_operators
from llama_edge.backends.executorch.placement import read_placement
from llama_edge.backends.executorch.reader import PteWeights, read_artifact
from llama_edge.backends.executorch.runner import read_runner_values
from llama_edge.core.artifact import (
    ActivationQuantization,
    Artifact,
    GraphOperator,
    Interface,
    KVCacheDtype,
    Placement,
    StoredBytes,
    TensorSpec,
)
from llama_edge.core.errors import ArtifactError, ConfigError, ExportError, UsageError
from llama_edge.core.hadamard import has_hadamard
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.progress import Progress
from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.core.recipe import Recipe
from llama_edge.core.runner_values import RunnerValue
from llama_edge.formats.pte import PteFile

_XNNPACK_GROUP = 32
_DTYPES = {schema.ScalarType.LONG: "int64", schema.ScalarType.FLOAT: "float32"}
_KNOWN = " or ".join(_DTYPES.values())


class ExecuTorchExporter:
    """`Exporter` for `.pte` on XNNPACK."""

    def check_supported(self, config: ModelConfig, recipe: Recipe, options: LowerOptions) -> None:
        """See `Exporter`."""
        if recipe.activation_bits is None:
            able = [one.name for one in TARGETS.values() if one.formats[0].float_activations]
            raise UsageError(
                f"recipe {recipe.name} leaves activations in floating point; XNNPACK's int4 "
                f"linears take int8 ones: choose --target {' or '.join(able)} in its default "
                "format, or a recipe with int8 activations"
            )
        options.refuse_prefill("XNNPACK's .pte")
        if options.accuracy_level is not None:
            raise UsageError(
                f"--accuracy-level {options.accuracy_level} belongs to the onnx target; XNNPACK "
                "always quantizes activations per token: leave it out"
            )
        options.context_for(config)
        if options.kv_cache is KVCacheDtype.FLOAT16:
            raise UsageError(
                "--kv-cache float16 belongs to Core ML; XNNPACK's .pte keeps keys and values in "
                "float32 or int8"
            )
        rotates = options.kv_cache is not None and options.kv_cache.rotates_heads
        if rotates and not has_hadamard(config.head_dim):
            raise ConfigError(
                f"config: head_dim is {config.head_dim}; an int8 KV cache turns heads by a "
                "Hadamard matrix, and none of this order is known here: choose --kv-cache float32"
            )
        if (recipe.weight_bits, recipe.table_bits) != (4, 8):
            raise ConfigError(
                f"recipe {recipe.name}: {recipe.weight_bits}-bit linears with "
                f"{recipe.table_bits}-bit tables; the ExecuTorch backend writes 4 and 8: "
                "choose another recipe"
            )
        group_size = recipe.group_size
        if group_size % _XNNPACK_GROUP:
            raise ConfigError(
                f"recipe {recipe.name}: group_size {group_size} is not a multiple of "
                f"{_XNNPACK_GROUP}, which XNNPACK needs; choose another recipe"
            )

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
        max_prefill = lower_to_pte(checkpoint, out_dir / PTE_FILE, options, progress)
        artifact = Artifact(
            backend="executorch",
            root=out_dir,
            files=(PTE_FILE,),
            config=checkpoint.config,
            activation=ActivationQuantization.INT8_PER_TOKEN,
            max_context=max_context,
            max_prefill=max_prefill,
            kv_cache=options.kv_cache or KVCacheDtype.FLOAT32,
        )
        placement = read_placement(PteFile(artifact.path))
        if placement.linears_delegated != placement.linears:
            raise ExportError(
                f"{PTE_FILE}: {placement.linears - placement.linears_delegated} of "
                f"{placement.linears} linears are outside XNNPACK and would run in portable code"
            )
        return artifact

    def open(self, path: Path) -> "WrittenPte":
        """See `Exporter`."""
        file = path if path.is_file() else path / PTE_FILE
        if not file.is_file():
            raise ArtifactError(f"{path}: has no {PTE_FILE}")
        return WrittenPte(PteFile(file))

    def runner_values(self, path: Path) -> tuple[RunnerValue, ...]:
        """See `Exporter`."""
        return read_runner_values(path / PTE_FILE if path.is_dir() else path)


class WrittenPte:
    """A `.pte`, as `WrittenArtifact`."""

    def __init__(self, pte: PteFile) -> None:
        self._pte = pte
        self.artifact = read_artifact(pte)

    def weights(self) -> PteWeights:
        """See `WrittenArtifact`."""
        return PteWeights(self._pte)

    def placement(self) -> Placement:
        """See `WrittenArtifact`."""
        return read_placement(self._pte)

    def interface(self) -> Interface:
        """See `WrittenArtifact`."""
        plan = self._pte.method("forward")

        def spec(name: str, places: Sequence[int], place: int) -> TensorSpec:
            tensor = self._pte.value(plan, self._pte.item(places, place, name))
            if not isinstance(tensor, schema.Tensor) or tensor.scalar_type not in _DTYPES:
                raise ArtifactError(
                    f"{self._pte.path}: forward: {name} is no tensor of {_KNOWN}: export it again"
                )
            dynamic = tensor.shape_dynamism is not schema.TensorShapeDynamism.STATIC
            sizes = list[int | str](tensor.sizes)
            if dynamic and len(sizes) > 1:
                sizes[1] = f"tokens <= {tensor.sizes[1]}"
            return TensorSpec(name=name, dtype=_DTYPES[tensor.scalar_type], shape=tuple(sizes))

        return Interface(
            inputs=(spec("tokens", plan.inputs, 0), spec("input_pos", plan.inputs, 1)),
            outputs=(spec("logits", plan.outputs, 0),),
            cache=_cache_layout(self.artifact),
        )

    def storage(self) -> tuple[StoredBytes, ...]:
        """See `WrittenArtifact`."""
        return files_as_storage(self.artifact)

    def operators(self) -> tuple[GraphOperator, ...]:
        """See `WrittenArtifact`."""
        return read_operators(self._pte)

    def end_tokens(self) -> tuple[int, ...]:
        """See `WrittenArtifact`."""
        return tuple(self._pte.constant("get_eos_ids"))


def _cache_layout(artifact: Artifact) -> str:
    config, dtype = artifact.config, artifact.kv_cache
    rows = f"({config.num_key_value_heads}, {artifact.max_context}, 1, {config.head_dim})"
    scales = " with a float32 scale and an int8 zero point per token and head; keys turned by R3"
    return (
        f"inside the method: {config.num_hidden_layers} layers of keys and values, {dtype.value} "
        f"{rows}{scales if dtype.rotates_heads else ''}"
    )
