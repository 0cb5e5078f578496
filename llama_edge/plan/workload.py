"""What a bundle of ours asks of a device: file size, cache, and products per token."""

from dataclasses import replace

from llama_edge.core.artifact import KVCacheDtype
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.recipe import Recipe, Rotation, Rounding
from llama_edge.models.weights import block_linear_weights
from llama_edge.plan.estimate import Workload
from llama_edge.plan.sizes import artifact_size


def quantized_config(config: ModelConfig, recipe: Recipe) -> ModelConfig:
    """The config of the network that `recipe` makes of a full-precision one.

    Raises:
        ConfigError: The recipe rotates, and a width has no Hadamard matrix.
    """
    if not recipe.rotations:
        return config
    orders = config.down_proj_rotation
    if orders is None and Rotation.R4 in recipe.rotations:
        from llama_edge.core.hadamard import r4_orders  # torch

        orders = r4_orders(config.intermediate_size, recipe.r4_block)
    # Codes that came with a checkpoint are rotated in a head of its own.
    tied = config.tie_word_embeddings and recipe.rounding is not Rounding.GIVEN
    return replace(config, down_proj_rotation=orders, head_rotation=tied, tie_word_embeddings=tied)


def bundle_workload(
    config: ModelConfig, recipe: Recipe, backend: str, kv_cache: KVCacheDtype, context: int
) -> Workload:
    """Of what `backend` writes for a quantized model.

    Args:
        config: Of the quantized network (`quantized_config`).
        recipe: How it is quantized.
        backend: One of the exporters' names.
        kv_cache: How keys and values are kept.
        context: Tokens that they hold.
    """
    linears = block_linear_weights(config)
    rotations = config.intermediate_size * sum(config.down_proj_rotation or ())
    layers = config.num_hidden_layers
    is_int8 = recipe.activation_bits is not None and backend != "coreml"
    head = config.vocab_size * config.hidden_size
    return Workload(
        config=config,
        size=artifact_size(config, recipe, backend, context),
        kv_bytes_per_token=kv_cache.bytes_per_token(config),
        int8_macs=linears * layers if is_int8 else 0,
        float_macs=rotations * layers + (0 if is_int8 else linears * layers),
        head_macs=head,
        unpacked_bytes=4 * head if backend == "onnx" and not is_int8 else 0,
    )
