import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import operator_cost as cost
from llama_edge.backends.base import LowerOptions
from llama_edge.backends.executorch.lower import lower_to_pte
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import QuantizedCheckpoint
from tests.conftest import DEBUG_CONFIG

NEEDS_CC = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="compiles for Linux"
)
CONTEXT = 64


@pytest.fixture(scope="module")
def pte(debug_quantized: QuantizedCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cost") / "model.pte"
    lower_to_pte(debug_quantized, path, LowerOptions(max_context=CONTEXT), SilentProgress())
    return path


def test_the_file_says_what_a_token_reads(pte: Path) -> None:
    file, config = cost.read_file(pte), DEBUG_CONFIG
    assert file.layers == config.num_hidden_layers
    width, wide = config.hidden_size, config.intermediate_size
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    linears = [linear for delegate in file.delegates for linear in delegate.linears]
    products = {linear.name: linear for linear in linears if linear.multiply_adds}
    assert {name: linear.multiply_adds for name, linear in products.items()} == {
        "q_proj, k_proj, v_proj": width * heads * config.head_dim,
        "o_proj": width * config.num_attention_heads * config.head_dim,
        "gate_proj": width * wide,
        "up_proj": width * wide,
        "down_proj": width * wide,
        "head": width * config.vocab_size,
    }
    # Two values a byte and a bfloat16 for each group of 32; the head int8.
    gate, head = products["gate_proj"], products["head"]
    assert gate.size_bytes == gate.multiply_adds // 2 + gate.multiply_adds // 16
    assert head.multiply_adds < head.size_bytes < 1.1 * head.multiply_adds
    assert (gate.whole_prompt, head.whole_prompt) == (True, False)
    per_head = 4 * config.head_dim
    kept = 2 * config.num_hidden_layers * config.num_key_value_heads * per_head
    assert file.cache_bytes_per_position == kept


def test_parts_add_up_to_the_whole() -> None:
    linear = cost.Linear(name="gate_proj", size_bytes=1000, multiply_adds=64, whole_prompt=True)
    head = replace(linear, name="head", whole_prompt=False)
    layer = cost.Delegate(linears=[linear, linear], called_before=["embedding"])
    last = cost.Delegate(linears=[head], called_before=["update_cache", "custom_sdpa"])
    file = cost.File(delegates=[layer, last], layers=1, cache_bytes_per_position=8)
    fc = "Fully Connected (NC)"
    found = [
        cost.Timed(gap_us=1, names=[fc, "Add", fc], operator_us=[10, 2, 20]),
        cost.Timed(gap_us=5, names=["Multiply", fc], operator_us=[3, 40]),
    ]
    parts = cost.parts(file, found, rows=128, position=9)
    assert parts["gate_proj"] == cost.Part(30, 2000, 2 * 128 * 64)
    assert parts["head"] == cost.Part(43, 1000, 64)
    assert parts[cost.ATTENTION] == cost.Part(5, 80, 0)
    assert parts[cost.BEFORE].us == 1
    assert sum(part.us for part in parts.values()) == 1 + 32 + 5 + 43
    lines = dict(cost.lines(file, parts, layers=3))
    assert lines["**3 layers**"].us == 3 * (32 + 5) + 1 + 43


def test_a_profile_of_another_file_is_refused() -> None:
    file = cost.File(
        delegates=[cost.Delegate(linears=[], called_before=[])],
        layers=1,
        cache_bytes_per_position=8,
    )
    found = [cost.Timed(gap_us=1, names=["Fully Connected (NC)"], operator_us=[1])]
    with pytest.raises(SystemExit, match=r"1 linears.*0 in the file"):
        cost.parts(file, found, rows=1, position=0)


@NEEDS_CC
def test_xnnpack_times_the_operators_of_the_file(
    pte: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = cost.compile_profile(tmp_path)
    measured = cost.measure_in_child(pte, threads=1, position=0, library=library, prompt=16)
    assert measured.read_gb_per_s > 0.1
    file = cost.read_file(pte)
    names = [name for times in measured.decode for name in times.names]
    linears = [linear for delegate in file.delegates for linear in delegate.linears]
    assert sum(name.startswith(cost.LINEAR) for name in names) == len(linears)
    total = sum(part.us for part in cost.parts(file, measured.decode, 1, 0).values())
    assert 0 < total <= 1.05 * measured.decode_call_us
