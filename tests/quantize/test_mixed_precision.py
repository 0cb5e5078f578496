from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import ConfigError
from llama_edge.core.packing import QuantizedTensor
from llama_edge.core.progress import SilentProgress
from llama_edge.core.quantized import MixedPrecision, QuantizedCheckpoint
from llama_edge.core.recipe import Recipe, Rounding
from llama_edge.formats.quantized_checkpoint import WEIGHTS_FILE, Layout
from llama_edge.models.network import network_of
from llama_edge.models.weights import block_linear_names
from llama_edge.quantize import W4A8_HADAMARD, W4A8_MIXED
from llama_edge.quantize.calibration import CalibrationSet
from llama_edge.quantize.mixed_precision import Candidate, spend
from llama_edge.quantize.stage import quantize_checkpoint


def quantize(
    checkpoint: Checkpoint, folder: Path, extra_bytes: float, recipe: Recipe = W4A8_MIXED
) -> QuantizedCheckpoint:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 256, (6, 64), generator=generator)
    folder.mkdir()
    return quantize_checkpoint(
        checkpoint,
        replace(recipe, extra_bytes=extra_bytes),
        folder,
        SilentProgress(),
        CalibrationSet(tokens=tokens, origin="random ids"),
    )


@pytest.fixture(scope="module")
def plain(
    debug_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> QuantizedCheckpoint:
    return quantize(
        debug_checkpoint, tmp_path_factory.mktemp("plain") / "q", 0.0, recipe=W4A8_HADAMARD
    )


def block_tensors(quantized: QuantizedCheckpoint) -> dict[str, QuantizedTensor]:
    names = block_linear_names(quantized.config)
    return {name: quantized.weights.quantized(name) for name in names}


def candidate(name: str, gain: float, size_bytes: int) -> Candidate:
    return Candidate(names=(name,), gain=gain, size_bytes=size_bytes)


def test_most_gain_a_byte_first_and_what_still_fits() -> None:
    candidates = [
        candidate("poor", 1.0, 10),
        candidate("large", 90.0, 100),
        candidate("rich", 5.0, 10),
        candidate("harmful", -1.0, 1),
    ]
    for budget, expected in (
        (0, []),
        (9, []),
        (10, ["rich"]),
        (20, ["poor", "rich"]),  # large is next but does not fit
        (110, ["large", "rich"]),
        (1000, ["poor", "large", "rich"]),
    ):
        chosen = spend(candidates, budget)
        assert [each.names[0] for each in chosen] == expected
        assert sum(each.size_bytes for each in chosen) <= budget


def test_of_equals_the_earlier_one() -> None:
    chosen = spend([candidate("a", 1.0, 10), candidate("b", 1.0, 10)], 10)
    assert [each.names for each in chosen] == [("a",)]


def test_no_budget_gives_the_plain_codes(
    debug_checkpoint: Checkpoint, plain: QuantizedCheckpoint, tmp_path: Path
) -> None:
    found = quantize(debug_checkpoint, tmp_path / "q", 0.0)
    assert found.mixed_precision is None
    ours, theirs = ((each.root / WEIGHTS_FILE).read_bytes() for each in (found, plain))
    assert ours == theirs


def test_a_budget_for_everything_takes_everything(
    debug_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    found = quantize(debug_checkpoint, tmp_path / "q", 1.0)
    assert found.mixed_precision is not None
    assert found.mixed_precision.int8_linears == tuple(block_linear_names(found.config))
    for tensor in block_tensors(found).values():
        assert (tensor.bits, tensor.group_size) == (8, tensor.shape[1])


@pytest.mark.parametrize("extra_bytes", [0.003, 0.1, 0.3])
def test_the_budget_is_spent_and_never_exceeded(
    extra_bytes: float, debug_checkpoint: Checkpoint, plain: QuantizedCheckpoint, tmp_path: Path
) -> None:
    found = quantize(debug_checkpoint, tmp_path / "q", extra_bytes)
    mixed, layout = found.mixed_precision, Layout(plain.config, plain.recipe)
    assert mixed is not None
    block_bytes = sum(map(layout.matrix_bytes, block_linear_names(plain.config)))
    assert mixed.spent_bytes <= mixed.budget_bytes <= extra_bytes * block_bytes
    # Header and padding aside, the files differ by what was spent.
    sizes = [
        sum(
            tensor.codes.numel() * tensor.bits // 8 + 2 * tensor.scales.numel()
            for tensor in block_tensors(each).values()
        )
        for each in (found, plain)
    ]
    assert sizes[0] - sizes[1] == mixed.spent_bytes
    assert bool(mixed.int8_linears) is (extra_bytes > 0.05)
    wide = {name for name, tensor in block_tensors(found).items() if tensor.bits == 8}
    assert wide == set(mixed.int8_linears)


def test_linears_of_one_product_share_their_width_and_the_bytes_repeat(
    debug_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    first = quantize(debug_checkpoint, tmp_path / "first", 0.3)
    second = quantize(debug_checkpoint, tmp_path / "second", 0.3)
    for name in ("weights.safetensors", "quantization.json"):
        assert (first.root / name).read_bytes() == (second.root / name).read_bytes()
    tensors = block_tensors(first)
    for layer in range(first.config.num_hidden_layers):
        for stack in network_of(first.config).stacked_linears(layer):
            assert len({tensors[node.weight].bits for node in stack}) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra_bytes": -0.1}, "extra_bytes is -0.1; a share from 0 to 1"),
        ({"extra_bytes": 1.5}, "extra_bytes is 1.5"),
        ({"weight_bits": 8}, "weight_bits 4 and rounding gptq are needed; they are 8 and gptq"),
        ({"rounding": Rounding.NEAREST}, "they are 4 and nearest"),
    ],
)
def test_a_budget_that_cannot_be_spent_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(W4A8_MIXED, **changes)  # type: ignore[arg-type]


def test_a_record_over_its_budget_is_refused() -> None:
    record = MixedPrecision(int8_linears=("a",), spent_bytes=5, budget_bytes=5).to_json()
    assert MixedPrecision.from_json(record).int8_linears == ("a",)
    with pytest.raises(ConfigError, match="spent_bytes is 6; budget_bytes allows 5"):
        MixedPrecision.from_json({**record, "spent_bytes": 6})
