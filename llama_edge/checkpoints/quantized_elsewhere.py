"""Models that somebody else quantized: named with the remedy, whatever their config says of it."""

from collections.abc import Mapping
from typing import Any, Final

from llama_edge.checkpoints.json_fields import Fields
from llama_edge.core.errors import CheckpointError

#: `quant_method` in transformers' `QuantizationMethod` -> what people call it
_METHODS: Final[Mapping[str, str]] = {
    "aqlm": "AQLM",
    "auto-round": "AutoRound",
    "awq": "AWQ",
    "bitnet": "BitNet",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors (llm-compressor)",
    "eetq": "EETQ",
    "exl2": "ExLlamaV2",
    "exl3": "ExLlamaV3",
    "fbgemm_fp8": "FP8 (FBGEMM)",
    "fp8": "FP8",
    "fp_quant": "FP-Quant",
    "gptq": "GPTQ",
    "higgs": "HIGGS",
    "hqq": "HQQ",
    "modelopt": "NVIDIA's ModelOpt",
    "mxfp4": "MXFP4",
    "mxfp8": "MXFP8",
    "nvfp4": "NVFP4",
    "quanto": "Quanto",
    "quark": "AMD's Quark",
    "sinq": "SINQ",
    "spqr": "SpQR",
    "torchao": "torchao",
    "vptq": "VPTQ",
}
#: Before `quant_method` there were files, and each library's own keys.
_KEYS: Final[Mapping[str, str]] = {
    "load_in_4bit": "bitsandbytes",
    "load_in_8bit": "bitsandbytes",
    "w_bit": "AWQ",
    "desc_act": "GPTQ",
    "config_groups": "compressed-tensors (llm-compressor)",
    "quant_algo": "NVIDIA's ModelOpt",
}
_FILES: Final[Mapping[str, str]] = {
    "quantize_config.json": "GPTQ",
    "quant_config.json": "AWQ",
    "hf_quant_config.json": "NVIDIA's ModelOpt",
}
_CONFIG_KEYS: Final = ("quantization_config", "compression_config")
_MLX_KEY: Final = "quantization"


def require_unquantized(fields: Fields) -> None:
    """Refuse a config.json of a quantized model, or one with the file of its quantizer beside it.

    Raises:
        CheckpointError: It names what the model was quantized with.
    """
    if fields.values.get(_MLX_KEY) is not None:  # a copy of it is in quantization_config
        _refuse(fields, "MLX")
    for key in _CONFIG_KEYS:
        value = fields.values.get(key)
        if value is not None:
            _refuse(fields, _method(value) or f"a method that {key} does not name")
    for name, method in _FILES.items():
        if (fields.path.parent / name).exists():
            _refuse(fields, f"{method} ({name})")


def _method(value: Any) -> str | None:  # noqa: ANN401
    if not isinstance(value, dict):
        return None
    named = value.get("quant_method")
    if isinstance(named, str) and named:
        return _METHODS.get(named.lower().replace("_", "-"), _METHODS.get(named, repr(named[:40])))
    return next((method for key, method in _KEYS.items() if key in value), None)


def _refuse(fields: Fields, method: str) -> None:
    raise CheckpointError(
        f"{fields.path}: the model was quantized with {method}, and such weights are not read; "
        "take its unquantized release"
    )
