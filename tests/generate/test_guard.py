"""Guards: verdicts by the model's own probabilities, and what is no guard."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import pytest

from llama_edge.backends.base import LowerOptions
from llama_edge.bundle.folder import Bundle
from llama_edge.bundle.manifest import Verdict
from llama_edge.core.errors import GuardError, SessionError, UsageError
from llama_edge.core.progress import SilentProgress
from llama_edge.core.session import ClosesOnExit, FloatArray
from llama_edge.generate.bundle_model import BundleModel
from llama_edge.generate.guard import Guard, GuardVerdict
from llama_edge.pipeline.export import ExportRequest, export_model
from llama_edge.text.guard_prompt import (
    CATEGORIES,
    GUARD_TEMPLATE,
    Category,
    Side,
    select_categories,
)
from llama_edge.text.tokenizer import Tokenizer
from tests.checkpoint_writers import llama3_text
from tests.guard_model import UNSAFE_PROBABILITY, guard_config, rows_of, small_text, write_guard

_TEXT: Final = small_text()
_ROWS: Final = rows_of(_TEXT)
_UNSAFE: Final = ("\n\n", "unsafe", "\n", "S", "1", ",S", "9", "<|eot_id|>")


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def agent(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


class Scripted(ClosesOnExit):
    """A session that finds the word "bomb" unsafe."""

    def __init__(self, model: "Model") -> None:
        self.max_context = model.max_context
        self._model = model
        self._held: list[int] = []
        self._prompt = 0
        self.prefills: list[int] = []

    def reset(self, keep: int = 0) -> None:
        del self._held[keep:]

    def prefill(self, tokens: Sequence[int]) -> FloatArray:
        self._held += tokens
        self._prompt = len(self._held)
        self.prefills.append(len(tokens))
        return self._logits()

    def decode(self, token: int) -> FloatArray:
        self._held.append(token)
        return self._logits()

    def close(self) -> None:
        self._model.closed = True

    def _logits(self) -> FloatArray:
        said = [self._model.names.get(token) for token in self._held[self._prompt :]]
        asked = self._model.tokenizer.decode(self._held[: self._prompt])
        logits = np.zeros(self._model.config.vocab_size, np.float32)
        if said == [*_UNSAFE[:1]]:
            unsafe = self._model.unsafe if "bomb" in asked else 1 - self._model.unsafe
            others = 1 - self._model.decided
            logits[:] = np.log(max(others, 1e-9) / len(logits))
            logits[_ROWS["unsafe"]] = np.log(self._model.decided * unsafe)
            logits[_ROWS["safe"]] = np.log(self._model.decided * (1 - unsafe))
        elif said == [*_UNSAFE[: len(said)]]:
            logits[_ROWS[_UNSAFE[len(said)]]] = 9
        else:
            logits[_ROWS["<|eot_id|>"]] = 9
        return logits


class Model:
    """What a guard needs of a `BundleModel`."""

    def __init__(
        self, *, unsafe: float = 0.9, decided: float = 1.0, max_context: int = 2000
    ) -> None:
        self.text = _TEXT
        self.tokenizer = Tokenizer(_TEXT)
        self.config = guard_config(_TEXT)
        self.max_context = max_context
        self.beginning = None
        self.names = {number: word for word, number in _ROWS.items()}
        self.unsafe = 0.9
        self.decided = decided
        self.closed = False

    def open(self) -> Scripted:
        self.session = Scripted(self)
        return self.session


def guard(model: Model, categories: Sequence[Category] | None = None, at: float = 0.5) -> Guard:
    return Guard(cast(BundleModel, model), categories, at)


def test_verdicts() -> None:
    model = Model()
    with guard(model) as opened:
        assert opened.own_template
        assert opened.categories == CATEGORIES
        assert opened.check([user("What is a lighthouse?")]) == GuardVerdict(
            safe=True,
            codes=(),
            unsafe_probability=cast(float, pytest.approx(0.1)),
            side=Side.USER,
            dropped=0,
        )
        found = opened.check([user("hello"), agent("a bomb")])
        assert not found.safe
        assert found.codes == ("S1", "S9")
        assert found.unsafe_probability == pytest.approx(0.9)
        assert found.side is Side.AGENT
        assert opened.name_of("S9") == "Indiscriminate Weapons"
        assert not model.closed
    assert model.closed


@pytest.mark.parametrize(("at", "safe"), [(0.05, False), (0.2, True), (0.5, True), (1.0, True)])
def test_a_threshold(at: float, safe: bool) -> None:
    with guard(Model(), at=at) as opened:
        found = opened.check([user("hello")])
        assert found.safe is safe
        assert found.codes == (() if safe else ("S1", "S9")), "asked for, though it says safe"
        assert opened.check([user("a bomb")]).safe is (at > 0.9)


@pytest.mark.parametrize("at", [0, -1.0, 1.1, float("nan")])
def test_a_threshold_that_cannot_be(at: float) -> None:
    with pytest.raises(UsageError, match="it must be above 0 and at most 1"):
        guard(Model(), at=at)


def test_other_tokens_take_no_part_in_the_probability() -> None:
    with guard(Model(decided=0.6)) as opened:
        assert opened.check([user("a bomb")]).unsafe_probability == pytest.approx(0.9)


def test_a_model_that_would_rather_say_something_else_has_no_verdict() -> None:
    said = pytest.raises(GuardError, match=r"a probability of 0\.4\d\d together")
    with guard(Model(decided=0.4)) as opened, said:
        opened.check([user("hello")])


def test_categories_of_ones_own() -> None:
    asked = [Category(code="S1", name="Spoilers"), Category(code="S4", name="Weather")]
    with guard(Model(), asked) as opened:
        found = opened.check([user("a bomb")])
        assert found.codes[0] == "S1"
        assert set(found.codes) <= {"S1", "S4"}, "S9, which the model would name, is not asked for"
        assert opened.name_of("S1") == "Spoilers"


def test_a_code_without_tokens_in_the_head_is_refused() -> None:
    with pytest.raises(GuardError, match=r"cannot answer 'unsafe\\nX1'"):
        guard(Model(), [Category(code="X1", name="Spoilers")])
    model = Model()
    model.config = replace(model.config, output_rows=None)
    with guard(model, [Category(code="X1", name="Spoilers")]) as opened:
        assert opened.check([user("a bomb")]).codes == ("X1",)


def test_a_head_without_verdicts_is_refused() -> None:
    model = Model()
    rows = tuple(row for row in _ROWS.values() if row != _ROWS["unsafe"])
    model.config = replace(model.config, output_rows=rows)
    with pytest.raises(GuardError, match=r"cannot answer 'unsafe\\nS1'"):
        guard(model)


def test_the_prompt_is_read_once() -> None:
    model = Model()
    with guard(model) as opened:
        opened.check([user("hello")])
        opened.check([user("a bomb")])
        first, second, again = model.session.prefills
    assert second < first / 2, "the categories are in the cache"
    assert again == 1, "and all of it when the categories are asked for"


def test_what_does_not_fit_is_left_out_from_the_beginning() -> None:
    turns: list[Any] = [user("a bomb"), agent("x" * 300)]
    turns += [user("x" * 300), agent("x" * 300)]
    with guard(Model()) as opened:
        found = opened.check([*turns, user("hello")])
        assert not found.safe
        assert found.dropped == 0
    with guard(Model(max_context=1500)) as opened:
        found = opened.check([*turns, user("hello")])
        assert found.safe
        assert found.dropped > 0
        with pytest.raises(SessionError, match="shorten it"):
            opened.check([user("hello " * 500)])
    with pytest.raises(UsageError, match="do not fit the context"):
        guard(Model(max_context=50))


def test_a_written_bundle(guard_bundle: Bundle) -> None:
    """The head of 20 rows, through the gate and the runtime."""
    assert guard_bundle.manifest.model.config.output_rows == tuple(_ROWS.values())
    with Guard(BundleModel(guard_bundle.root), select_categories(["S1"])) as opened:
        found = opened.check([user("Where does the lighthouse stand?")])
        assert found.unsafe_probability == pytest.approx(UNSAFE_PROBABILITY, abs=0.03)
        assert found.codes == ("S1",)
    with Guard(BundleModel(guard_bundle.root), threshold=0.9) as opened:
        assert opened.check([user("Where?"), agent("On the cape.")]).safe


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "recipe"),
    [("android", "w4a8-rtn"), ("onnx", "w4a8-rtn"), ("ios", "w4-hadamard")],
)
def test_metas_tokenizer_through_every_target(tmp_path: Path, target: str, recipe: str) -> None:
    text = replace(llama3_text(), chat_template=GUARD_TEMPLATE)
    model = write_guard(tmp_path / "guard", text)
    file = tmp_path / "text.txt"
    file.write_text("The lighthouse keeper counts the ships of the evening. " * 400)
    request = ExportRequest(
        model=str(model),
        target=target,
        recipe=recipe,
        out=tmp_path / "bundle",
        options=LowerOptions(max_context=512),
        calibration=(file,) if recipe == "w4-hadamard" else (),
    )
    bundle = export_model(request, SilentProgress())
    assert bundle.manifest.verdict is Verdict.PASSED
    assert bundle.manifest.model.config.head_rows == 20
    with Guard(BundleModel(bundle.root)) as opened:
        found = opened.check([user("Where?"), agent("On the cape <|eot_id|>.")])
        assert found.codes == ("S1", "S9")
        assert found.unsafe_probability == pytest.approx(UNSAFE_PROBABILITY, abs=0.03)


def test_a_chat_model_is_no_guard(debug_bundles: dict[str, Bundle]) -> None:
    with pytest.raises(GuardError, match="the bundle is no guard"):
        Guard(BundleModel(Path(debug_bundles["onnx"].root)))
