"""What a `.pte` tells ExecuTorch's LLM runner, and what its caches have room for.

Source: `extension/llm/runner` in ExecuTorch, which asks the constant methods; a file of somebody
else's may lack some of them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from executorch.exir import schema

from llama_edge.core.runner_values import RunnerField, RunnerValue
from llama_edge.formats.pte import PteFile

#: Methods that give one integer.
_NUMBERS: Final = {
    "get_bos_id": RunnerField.BOS_TOKEN_ID,
    "get_max_context_len": RunnerField.MAX_CONTEXT,
    "get_max_seq_len": RunnerField.MAX_PREFILL,
    "get_n_layers": RunnerField.NUM_HIDDEN_LAYERS,
    "get_vocab_size": RunnerField.VOCAB_SIZE,
    "use_kv_cache": RunnerField.USES_KV_CACHE,
}
_END_TOKENS: Final = "get_eos_ids"
#: Operator that writes a cache -> which of its arguments that is; a cache is (K, S, 1, H).
_CACHE_WRITERS: Final = {"llama::update_cache": 1}
_CACHE_DIMENSIONS: Final = 4


def read_runner_values(path: Path) -> tuple[RunnerValue, ...]:
    """See `Exporter`."""
    pte = PteFile(path)
    return (*_constants(pte), *_caches(pte))


def _constants(pte: PteFile) -> Iterator[RunnerValue]:
    methods = {plan.name for plan in pte.program.execution_plan}
    for name, field in _NUMBERS.items():
        if name not in methods:
            continue
        where = f"{pte.path.name}: {name}"
        yield RunnerValue(field=field, where=where, value=pte.number(name))
    if _END_TOKENS in methods:
        yield RunnerValue(
            field=RunnerField.EOS_TOKEN_IDS,
            where=f"{pte.path.name}: {_END_TOKENS}",
            value=tuple(pte.constant(_END_TOKENS)),
        )


def _caches(pte: PteFile) -> Iterator[RunnerValue]:
    """The smallest cache: the one that is full first."""
    plan = pte.method("forward")
    sizes = []
    for instruction in pte.instructions(plan):
        call = instruction.instr_args
        if not isinstance(call, schema.KernelCall):
            continue
        argument = _CACHE_WRITERS.get(pte.operator(plan, call))
        if argument is None:
            continue
        cache = pte.argument(plan, call, argument)
        if isinstance(cache, schema.Tensor) and len(cache.sizes) == _CACHE_DIMENSIONS:
            sizes.append(cache.sizes[1])
    if sizes:
        place = sizes.index(min(sizes))
        yield RunnerValue(
            field=RunnerField.CACHE_TOKENS,
            where=f"{pte.path.name}: forward, cache {place}",
            value=min(sizes),
        )
