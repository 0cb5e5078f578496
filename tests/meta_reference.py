"""Meta's own code, unmodified, on single-process stand-ins for what is not installed here."""

import importlib
import sys
from types import ModuleType

import pytest
from torch import nn
from torchao.quantization import linear_quant_modules


class _Linear(nn.Linear):
    """fairscale's parallel linears on one process."""

    def __init__(self, in_features: int, out_features: int, bias: bool, **_: object) -> None:
        super().__init__(in_features, out_features, bias=bias)


class _Embedding(nn.Embedding):
    def __init__(self, rows: int, columns: int, init_method: object) -> None:
        super().__init__(rows, columns)


def import_meta_model(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`llama3/model.py`."""
    parallel = "fairscale.nn.model_parallel"
    for name in ("fairscale", "fairscale.nn", parallel):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name in ("initialize", "layers", "mappings"):
        monkeypatch.setitem(sys.modules, f"{parallel}.{name}", ModuleType(name))
    initialize = sys.modules[f"{parallel}.initialize"]
    monkeypatch.setattr(initialize, "get_model_parallel_world_size", lambda: 1, raising=False)
    layers = sys.modules[f"{parallel}.layers"]
    for name in ("ColumnParallelLinear", "RowParallelLinear"):
        monkeypatch.setattr(layers, name, _Linear, raising=False)
    monkeypatch.setattr(layers, "VocabParallelEmbedding", _Embedding, raising=False)
    monkeypatch.delitem(sys.modules, "llama_models.llama3.model", raising=False)
    return importlib.import_module("llama_models.llama3.model")


def import_meta_loader(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`llama3/quantization/loader.py`, which reads Meta's int4 releases.

    It is given torchao's int4 linear from where torchao keeps it today, and no fp8 kernels, no
    multimodal model and no process groups, none of which an int4 text model uses.
    """
    import_meta_model(monkeypatch)
    parallel = "fairscale.nn.model_parallel"
    rank = sys.modules[f"{parallel}.initialize"]
    monkeypatch.setattr(rank, "get_model_parallel_rank", lambda: 0, raising=False)
    mappings = sys.modules[f"{parallel}.mappings"]
    monkeypatch.setattr(mappings, "reduce_from_model_parallel_region", None, raising=False)
    absent = {
        "llama_models.quantize_impls": (
            *("Fp8ScaledWeights", "ffn_swiglu", "load_fp8", "quantize_fp8"),
        ),
        "llama_models.llama3.multimodal.model": ("CrossAttentionTransformer",),
    }
    for name, contents in absent.items():
        module = ModuleType(name)
        for content in contents:
            monkeypatch.setattr(module, content, type(content, (), {}), raising=False)
        monkeypatch.setitem(sys.modules, name, module)
    gptq = ModuleType("torchao.quantization.GPTQ")
    linear = linear_quant_modules.Int8DynActInt4WeightLinear
    monkeypatch.setattr(gptq, "Int8DynActInt4WeightLinear", linear, raising=False)
    monkeypatch.setitem(sys.modules, gptq.__name__, gptq)
    monkeypatch.delitem(sys.modules, "llama_models.llama3.quantization.loader", raising=False)
    return importlib.import_module("llama_models.llama3.quantization.loader")
