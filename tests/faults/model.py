"""Faults of the model file: what it says of itself, its kernels, codes and scales."""

from functools import partial
from typing import Final

from tests.faults import forging as forge
from tests.faults.fault import DOWN, TEMPLATE, Plant, edited, field, in_manifest, manifest, says
from tests.faults.forging import Json, put


def graph_field(key: str, place: str, value: object) -> Plant:
    def change(found: Json) -> None:
        put(found, place, value)

    return lambda folder: forge.edit_onnx_metadata(folder, f"llama_edge.{key}", change)


def constant(method: str, *numbers: int) -> Plant:
    return lambda folder: forge.set_constant(folder, method, *numbers)


METADATA: Final = (
    says(
        "end token that the .pte lacks",
        "android",
        constant("get_eos_ids", 0),
        "eos.missing",
        "model.pte: get_eos_ids",
    ),
    says(
        "end token that genai_config lacks",
        "onnx",
        field("genai_config.json", "model.eos_token_id", [2]),
        "eos.missing",
        "genai_config.json: model.eos_token_id",
    ),
    says(
        "end token that the package lacks",
        "ios",
        lambda folder: forge.edit_package_metadata(
            folder, "llama_edge.eos_token_ids", lambda ids: ids[:1]
        ),
        "eos.missing",
        "model.mlpackage: llama_edge.eos_token_ids",
    ),
    says(
        "context in the .pte longer than its cache",
        "android",
        constant("get_max_context_len", 2048),
        "context.cache",
        "model.pte: get_max_context_len",
    ),
    says(
        "cache shorter than the context",
        "android",
        partial(forge.shrink_caches, tokens=256),
        "context.cache",
        "model.pte: forward, cache 0",
    ),
    says(
        "context in genai_config longer than the rope tables",
        "onnx",
        field("genai_config.json", "model.context_length", 4096),
        "context.cache",
        "genai_config.json: model.context_length",
    ),
    says(
        "search longer than the context",
        "onnx",
        field("genai_config.json", "search.max_length", 4096),
        "context.cache",
        "genai_config.json: search.max_length",
    ),
    says(
        "context in the package shorter than promised",
        "ios",
        lambda folder: forge.edit_package_metadata(
            folder, "llama_edge.lowering", lambda found: {**found, "max_context": 256}
        ),
        "context.cache",
        "model.mlpackage: llama_edge.lowering",
    ),
    says(
        "prompts longer than one call takes",
        "android",
        constant("get_max_seq_len", 128),
        "context.prefill",
        "model.pte: get_max_seq_len",
    ),
    says(
        "begin token of another model in the .pte",
        "android",
        constant("get_bos_id", 1),
        "tokenizer.bos",
        "model.pte: get_bos_id",
    ),
    says(
        "vocabulary of another model in genai_config",
        "onnx",
        field("genai_config.json", "model.vocab_size", 128256),
        "artifact.metadata",
        "genai_config.json: model.vocab_size",
    ),
    says(
        "no cache, says the .pte",
        "android",
        constant("use_kv_cache", 0),
        "artifact.metadata",
        "model.pte: use_kv_cache",
    ),
    says(
        "package of another tokenizer",
        "ios",
        edited("tokenizer_config.json", lambda config: config.pop("chat_template")),
        "template.missing",
        TEMPLATE,
    ),
    says(
        "epsilon 1e-6 for 1e-5",
        "onnx",
        graph_field("config", "rms_norm_eps", 1e-6),
        "artifact.config",
        "model.onnx: rms_norm_eps",
    ),
    says(
        "another rope theta",
        "onnx",
        graph_field("config", "rope_theta", 500000.0),
        "artifact.config",
        "model.onnx: rope_theta",
    ),
    says(
        "activations left in floating point",
        "onnx",
        graph_field("lowering", "accuracy_level", 0),
        "artifact.activation",
        "model.onnx: activation_quantization",
    ),
    says(
        "cache of another number type",
        "android",
        manifest("artifact.kv_cache", "int8"),
        "artifact.kv_cache",
        "model.pte: kv_cache",
    ),
    says(
        "input of another number type",
        "onnx",
        in_manifest(
            lambda found: put(found["artifact"]["interface"]["inputs"][0], "dtype", "int32")
        ),
        "artifact.interface",
        "model.onnx: inputs input_ids",
    ),
    says(
        "head outside of the delegates",
        "android",
        forge.drop_last_delegate,
        "artifact.delegation",
        "model.pte: linears",
    ),
)


CODES: Final = (
    says(
        "one nibble pair swapped in a .pte",
        "android",
        lambda folder: forge.edit_pte_data(folder, f"{DOWN}.codes", forge.swap_nibbles),
        "codes.sha256",
        f"model.pte: {DOWN}",
    ),
    says(
        "one nibble pair swapped in ONNX",
        "onnx",
        lambda folder: forge.edit_onnx_data(folder, f"{DOWN}.codes", forge.swap_nibbles),
        "codes.sha256",
        f"model.onnx: {DOWN}",
    ),
    says(
        "one nibble pair swapped in a package",
        "ios",
        lambda folder: forge.edit_package_data(folder, DOWN, "data", forge.swap_nibbles),
        "codes.sha256",
        f"model.mlpackage/Manifest.json: {DOWN}",
    ),
    says(
        "one scale off by one bfloat16 step in a .pte",
        "android",
        lambda folder: forge.edit_pte_data(folder, f"{DOWN}.scales", forge.next_bf16),
        "codes.scales",
        f"model.pte: {DOWN}",
    ),
    says(
        "one scale off by one bfloat16 step in ONNX",
        "onnx",
        lambda folder: forge.edit_onnx_data(folder, f"{DOWN}.scales", forge.next_bf16),
        "codes.scales",
        f"model.onnx: {DOWN}",
    ),
    says(
        "one scale off by one bfloat16 step in a package",
        "ios",
        lambda folder: forge.edit_package_data(folder, DOWN, "scale", forge.next_fp16_that_is_bf16),
        "codes.scales",
        f"model.mlpackage/Manifest.json: {DOWN}",
    ),
    says(
        "a layer left unquantized",
        "onnx",
        partial(forge.leave_unquantized, name=DOWN),
        "codes.unquantized",
        f"model.onnx: {DOWN}",
    ),
    says(
        "weight that the .pte lost",
        "android",
        partial(forge.drop_named_data, key=f"{DOWN}.codes"),
        "codes.missing",
        f"model.pte: {DOWN}",
    ),
)
