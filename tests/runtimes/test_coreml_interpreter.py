"""What holds for a whole program: weights, states, precision, foreign packages, damaged ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813
from numpy.typing import NDArray
from torch import Tensor, nn

from llama_edge.core.errors import SessionError
from llama_edge.formats.mlpackage import MLPackage
from llama_edge.runtimes.coreml import weights
from llama_edge.runtimes.coreml.interpreter import Interpreter, Precision
from tests.runtimes.mil_packages import low_bits, save_program

#: Values that a program builds with, and parts of a saved one; neither library has types.
Var = Any
Message = Any
GENERATOR = np.random.default_rng(0)
STATE = (2, 3, 4)


def normal(*shape: int) -> NDArray[np.float32]:
    return GENERATOR.standard_normal(shape).astype(np.float32)


def run(path: Path, *given: NDArray[Any], **options: Any) -> NDArray[Any]:  # noqa: ANN401
    (found,) = run_with(Interpreter(MLPackage(path), **options), *given).values()
    return found


def run_with(interpreter: Interpreter, *given: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return interpreter.run({f"x{index}": values for index, values in enumerate(given)})


# Weights

CODES = {
    "int4": GENERATOR.integers(-8, 8, (6, 8)),
    "uint4": GENERATOR.integers(0, 16, (6, 8)),
    "int8": GENERATOR.integers(-128, 128, (6, 8)),
}


def compressed(
    kind: str, scale: NDArray[np.float16], offset: NDArray[Any] | None
) -> tuple[Callable[[], Var], NDArray[np.float32]]:
    """An operator that makes a weight (6, 8), and the weight."""
    codes = CODES[kind]
    repeats = [size // count for size, count in zip(codes.shape, scale.shape, strict=True)]
    shifted = codes.astype(np.float32)
    if offset is not None:
        shifted -= np.kron(offset, np.ones(repeats))
    weight = shifted * np.kron(scale.astype(np.float32), np.ones(repeats))

    def make() -> Var:
        marked = codes.astype(np.int8) if kind == "int8" else low_bits(codes, kind)
        options = {} if offset is None else {"offset": low_bits(offset, kind)}
        return mb.constexpr_blockwise_shift_scale(data=marked, scale=scale, **options)

    return make, weight.astype(np.float32)


LAYOUTS = {
    "int4-groups": ("int4", (6, 2), False),
    "int4-rows": ("int4", (6, 1), False),
    "int4-blocks-of-rows": ("int4", (2, 4), False),
    "uint4-zero_points": ("uint4", (6, 2), True),
    "uint4-blocks_with_zero_points": ("uint4", (3, 1), True),
    "int8-rows": ("int8", (6, 1), False),
}


@pytest.mark.parametrize("budget", [0, 1 << 20])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compressed_weights_are_their_codes_times_their_scales(
    layout: str, budget: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "CHUNK_ELEMENTS", 16)  # two rows at a time
    kind, shape, shifted = LAYOUTS[layout]
    scale = (np.abs(normal(*shape)) + 0.1).astype(np.float16)
    offset = GENERATOR.integers(0, 16, shape) if shifted else None
    make, weight = compressed(kind, scale, offset)
    bias = normal(6).astype(np.float16)

    def body(x: Var, indices: Var) -> Var:
        stored = make()
        product = mb.linear(x=mb.cast(x=x, dtype="fp16"), weight=stored, bias=bias)
        rows = mb.gather(x=stored, indices=indices, axis=0)
        whole = mb.transpose(x=stored, perm=[1, 0])
        parts = [mb.reshape(x=part, shape=[-1]) for part in (product, rows, whole)]
        return mb.cast(x=mb.concat(values=parts, axis=0), dtype="fp32")

    path = save_program(tmp_path / "a.mlpackage", body, [("fp32", (3, 8)), ("int32", (2,))])
    x, indices = normal(3, 8), np.array([4, 1], np.int32)
    product = x @ weight.T + bias.astype(np.float32)
    expected = np.concatenate([product.ravel(), weight[indices].ravel(), weight.T.ravel()])
    interpreter = Interpreter(MLPackage(path), budget_bytes=budget)
    for _ in range(2):  # what was kept, and what was not, is right the second time too
        (found,) = run_with(interpreter, x, indices).values()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_weights_are_kept_within_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (
        compressed("int8", (np.abs(normal(6, 1)) + 0.1).astype(np.float16), None)[0]
        for _ in range(2)
    )

    def body(x: Var) -> Var:
        return mb.add(x=mb.linear(x=x, weight=first()), y=mb.linear(x=x, weight=second()))

    path = save_program(tmp_path / "a.mlpackage", body, [("fp16", (1, 8))])
    read: list[int] = []
    rows = weights.BlockwiseWeight.rows

    def counted(weight: weights.BlockwiseWeight, start: int, stop: int) -> Tensor:
        read.append(stop - start)
        return rows(weight, start, stop)

    monkeypatch.setattr(weights.BlockwiseWeight, "rows", counted)
    for budget, expected in [(0, [6, 6, 6, 6]), (6 * 8 * 4, [6, 6, 6]), (1 << 20, [6, 6])]:
        read.clear()
        interpreter = Interpreter(MLPackage(path), budget_bytes=budget)
        for _ in range(2):
            run_with(interpreter, normal(1, 8))
        assert read == expected


def test_a_gather_reads_the_rows_that_it_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = normal(300, 64)  # large enough to stay where it is

    def body(indices: Var) -> Var:
        return mb.gather(x=table, indices=indices, axis=0)

    path = save_program(tmp_path / "a.mlpackage", body, [("int32", (2,))])
    monkeypatch.setattr(weights.Weight, "read", lambda _: pytest.fail("it read the whole table"))
    indices = np.array([299, -1 - 5], np.int32)
    np.testing.assert_array_equal(run(path, indices), table[indices])
    with pytest.raises(SessionError, match=r"gather .*: row 300 of 300"):
        run(path, np.array([0, 300], np.int32))


# States


def test_a_state_goes_on_from_run_to_run_until_the_reset(tmp_path: Path) -> None:
    """As a KV cache does: written in the middle, read as a whole."""

    def body(x: Var, state: Var) -> Var:
        live = mb.read_state(input=state)
        begin, end = [1, 0, 2], [2, 3, 4]
        middle = mb.slice_by_index(x=live, begin=begin, end=end)
        updated = mb.slice_update(x=live, update=mb.add(x=middle, y=x), begin=begin, end=end)
        return mb.identity(x=mb.coreml_update_state(state=state, value=updated))

    path = save_program(tmp_path / "a.mlpackage", body, [("fp16", (1, 3, 2))], [STATE])
    interpreter = Interpreter(MLPackage(path))
    x = normal(1, 3, 2)
    for runs in (3, 1):
        interpreter.reset()
        for _ in range(runs):
            (found,) = run_with(interpreter, x).values()
        expected = np.zeros(STATE, np.float32)
        expected[1:, :, 2:] = runs * x
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def first_column(x: Var) -> Var:
    return mb.slice_by_index(x=x, begin=[0, 0, 0], end=[2, 3, 1])


def update(live: Var, x: Var) -> Var:
    return mb.slice_update(x=live, update=x, begin=[0, 0, 0], end=[2, 3, 1])


def never_written(x: Var, state: Var) -> tuple[Var, ...]:
    changed = update(mb.read_state(input=state), x)
    return first_column(changed), mb.identity(x=mb.read_state(input=state))


def read_before(x: Var, state: Var) -> tuple[Var, ...]:
    live = mb.read_state(input=state)
    before = mb.read_state(input=state)
    mb.coreml_update_state(state=state, value=update(live, x))
    return first_column(before), mb.identity(x=live)


def seen_by_a_view(x: Var, state: Var) -> tuple[Var, ...]:
    live = mb.read_state(input=state)
    view = first_column(live)
    after = mb.coreml_update_state(state=state, value=update(live, x))
    return mb.identity(x=view), first_column(after)


def kept_as_an_output(x: Var, state: Var) -> tuple[Var, ...]:
    live = mb.read_state(input=state)
    after = mb.coreml_update_state(state=state, value=update(live, x))
    twice = mb.coreml_update_state(state=state, value=update(after, mb.add(x=x, y=x)))
    return after, twice


ALIASES: dict[str, tuple[Callable[..., tuple[Var, ...]], Callable[..., list[Any]]]] = {
    "never_written": (never_written, lambda x, old: [x, old]),
    "read_before": (read_before, lambda _, old: [old[..., :1], old]),
    "seen_by_a_view": (seen_by_a_view, lambda x, old: [old[..., :1], x]),
    "kept_as_an_output": (
        kept_as_an_output,
        lambda x, _: [np.pad(x, [(0, 0)] * 2 + [(0, 3)]), np.pad(2 * x, [(0, 0)] * 2 + [(0, 3)])],
    ),
}


@pytest.mark.parametrize("name", ALIASES)
def test_an_update_changes_nothing_that_was_read_before(name: str, tmp_path: Path) -> None:
    body, expect = ALIASES[name]
    path = save_program(tmp_path / "a.mlpackage", body, [("fp16", (2, 3, 1))], [STATE])
    x = normal(2, 3, 1)
    found = list(run_with(Interpreter(MLPackage(path)), x).values())
    for values, expected in zip(found, expect(x, np.zeros(STATE)), strict=True):
        np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_a_chain_of_updates_copies_no_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def body(x: Var, state: Var) -> Var:
        live = mb.read_state(input=state)
        total = x
        for _ in range(3):
            live = mb.coreml_update_state(state=state, value=update(live, total))
            total = mb.add(x=total, y=first_column(live))
        return total

    path = save_program(tmp_path / "a.mlpackage", body, [("fp16", (2, 3, 1))], [STATE])
    interpreter = Interpreter(MLPackage(path))
    monkeypatch.setattr(Tensor, "clone", lambda *_, **__: pytest.fail("it copied"))
    x = normal(2, 3, 1)
    (found,) = run_with(interpreter, x).values()
    np.testing.assert_allclose(found, 8 * x, rtol=1e-6)


# Precision


def test_exact_keeps_float32_where_half_rounds_as_declared(tmp_path: Path) -> None:
    def body(x: Var, y: Var) -> Var:
        total = mb.add(x=mb.cast(x=x, dtype="fp16"), y=mb.cast(x=y, dtype="fp16"))
        return mb.cast(x=total, dtype="fp32")

    path = save_program(tmp_path / "a.mlpackage", body, [("fp32", (50,))] * 2)
    x, y = normal(50), normal(50)
    np.testing.assert_array_equal(run(path, x, y), x + y)
    rounded = (x.astype(np.float16) + y.astype(np.float16)).astype(np.float32)
    assert (rounded != x + y).any()
    np.testing.assert_array_equal(run(path, x, y, precision=Precision.HALF), rounded)


def test_half_overflows_and_rounds_weights_as_a_device_would(tmp_path: Path) -> None:
    make, weight = compressed("int8", np.full((6, 1), 0.2345, np.float16), None)

    def body(x: Var) -> Var:
        big = mb.mul(x=mb.transpose(x=make(), perm=[1, 0]), y=np.float16(3000))
        return mb.mul(x=mb.cast(x=big, dtype="fp32"), y=x)

    path = save_program(tmp_path / "a.mlpackage", body, [("fp32", (1,))])
    one = np.ones(1, np.float32)
    np.testing.assert_allclose(run(path, one), 3000 * weight.T, rtol=1e-6)
    with np.errstate(over="ignore"):
        expected = weight.T.astype(np.float16) * np.float16(3000)
    assert np.isinf(expected).any()
    half = run(path, one, precision=Precision.HALF)
    np.testing.assert_array_equal(half, expected.astype(np.float32))


# A package that was converted from PyTorch


class TinyTransformer(nn.Module):
    """Operators that our own exporter has no use for."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.norm = nn.LayerNorm(32)
        self.projection = nn.Linear(32, 96)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 50, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        query, key, value = self.projection(self.norm(x)).split(32, dim=-1)
        query, key, value = (part.view(1, -1, 4, 8).transpose(1, 2) for part in (query, key, value))
        length = tokens.shape[1]
        future = torch.triu(torch.ones(length, length), diagonal=1).bool()
        scores = (query @ key.transpose(-1, -2) / 8**0.5).masked_fill(future, -1e4)
        attended = (scores.softmax(-1) @ value).transpose(1, 2).reshape(1, -1, 32)
        x = x + attended
        x = x + self.down(nn.functional.gelu(self.up(x)))
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
        return self.head(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("half", [False, True])
def test_a_package_that_coremltools_converted_runs(half: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TinyTransformer().eval()
    tokens = torch.arange(0, 45, 5)[None].int()
    exported = torch.export.export(model, (tokens,)).run_decompositions({})
    converted = ct.convert(
        exported,
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
        skip_model_load=True,
    )
    converted.save(str(tmp_path / "a.mlpackage"))
    interpreter = Interpreter(MLPackage(tmp_path / "a.mlpackage"))
    (declared,) = interpreter.inputs
    (found,) = interpreter.run({declared.name: tokens.numpy()}).values()
    with torch.no_grad():
        expected = model(tokens).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-2 if half else 1e-5)


# Programs that are wrong
