import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from llama_edge.bundle.folder import Bundle
from llama_edge.core.errors import CheckFailedError, TextError, UsageError
from llama_edge.core.progress import SilentProgress
from llama_edge.core.regular import MAX_TEXT_BYTES
from llama_edge.evaluate.evaluate import evaluate
from llama_edge.evaluate.report import EvalReport, EvalRequest
from llama_edge.suites.request import SuiteRequest
from tests.gate.test_check_bundle import rehash
from tests.suites.tiny import write_tiny

METRICS = {"perplexity", "perplexity_ratio", "mean_kl", "p99_kl", "p999_kl", "top1_agreement"}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Six windows and more of English, five of German."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "en.txt").write_text("The rain in the north is nothing like the rain at sea. " * 9)
    (folder / "de.txt").write_text("Über den Bäumen hängt der Nebel, und das Gras ist naß. " * 7)
    return folder / "en.txt", folder / "de.txt"


def measure(texts: tuple[Path, ...], *subjects: object, **options: Any) -> EvalReport:  # noqa: ANN401
    names = tuple(map(str, subjects))
    request = EvalRequest(subjects=names, texts=texts, window=64, **options)
    return evaluate(request, SilentProgress())


@pytest.mark.parametrize("target", ["android", "onnx"])
def test_a_bundle_runs_through_its_own_runtime(
    debug_bundles: Mapping[str, Bundle], debug_folder: Path, texts: tuple[Path, Path], target: str
) -> None:
    root = debug_bundles[target].root
    report = measure(texts, root, debug_folder, against=str(debug_folder), max_windows=5)
    bundle, model = report.subjects
    assert bundle.runtime == debug_bundles[target].manifest.backend
    assert (bundle.against, model.runtime, model.against) == (str(debug_folder), None, None)
    assert [(found.text, found.windows) for found in bundle.results] == [
        (str(texts[0]), 5),
        (str(texts[1]), 5),
        ("total", 10),
    ]
    total = bundle.results[-1].metrics
    assert set(total) == METRICS
    assert set(model.results[-1].metrics) == {"perplexity"}
    assert 1e-4 < total["mean_kl"].value < total["p99_kl"].value < total["p999_kl"].value
    assert 0.5 < total["top1_agreement"].value < 1
    ratio = total["perplexity"].value / model.results[-1].metrics["perplexity"].value
    assert total["perplexity_ratio"].value == pytest.approx(ratio, rel=1e-6)
    mean = sum(found.metrics["mean_kl"].value for found in bundle.results[:2]) / 2
    assert total["mean_kl"].value == pytest.approx(mean)


def test_a_bundle_against_itself_differs_by_nothing(
    debug_bundles: Mapping[str, Bundle], debug_folder: Path, texts: tuple[Path, Path]
) -> None:
    root = debug_bundles["onnx"].root
    report = measure(texts, root, root, against=str(debug_folder))
    assert len(report.difference) == 3
    for found in report.difference:
        assert set(found.metrics) == METRICS
        for value in found.metrics.values():
            assert (value.value, value.low, value.high) == (0.0, 0.0, 0.0)


def with_wrong_codes(right: Path, wrong: Path) -> Path:
    """A copy with 512 bytes of quantized values changed."""
    shutil.copytree(right, wrong)
    path = wrong / "model.onnx.data"
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 512] = bytes(byte ^ 0x88 for byte in data[middle : middle + 512])
    path.write_bytes(data)
    return wrong


def test_wrong_codes_show_up_though_every_hash_agrees(
    debug_bundles: Mapping[str, Bundle],
    debug_folder: Path,
    texts: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    right = debug_bundles["onnx"].root
    wrong = with_wrong_codes(right, tmp_path / "wrong")
    with pytest.raises(CheckFailedError, match="SHA-256"):
        measure(texts, wrong)
    rehash(wrong)
    total = measure(texts, right, wrong, against=str(debug_folder)).difference[-1].metrics
    assert total["mean_kl"].low is not None
    assert total["mean_kl"].low > 0


def test_wrong_codes_miss_a_suite(
    debug_bundles: Mapping[str, Bundle], debug_folder: Path, tmp_path: Path
) -> None:
    right = debug_bundles["onnx"].root
    wrong = with_wrong_codes(right, tmp_path / "wrong")
    rehash(wrong)
    suite = SuiteRequest(suite=str(write_tiny(tmp_path)), require=("agreement.every=0.35",))
    report = measure((), right, wrong, against=str(debug_folder), suite=suite)
    good, bad = (subject.suite for subject in report.subjects)
    assert good is not None
    assert bad is not None
    assert good.passed
    assert len(bad.missed) == 3
    assert report.missed == tuple(f"{wrong}: {line}" for line in bad.missed)


def test_without_full_precision_there_is_perplexity_alone(
    debug_bundles: Mapping[str, Bundle], texts: tuple[Path, Path]
) -> None:
    [subject] = measure(texts, debug_bundles["onnx"].root, max_windows=1).subjects
    assert subject.against is None
    assert set(subject.results[0].metrics) == {"perplexity"}
    assert subject.results[0].metrics["perplexity"].low is None


def test_the_same_numbers_twice(
    debug_bundles: Mapping[str, Bundle], debug_folder: Path, texts: tuple[Path, Path]
) -> None:
    root = debug_bundles["onnx"].root
    first, again = (measure(texts, root, against=str(debug_folder)) for _ in range(2))
    assert first.to_json() == again.to_json()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the file is missing"),
        (b"caf\xe9 " * 400, "not UTF-8 text: invalid continuation byte at byte 3"),
        (b"short", "tokens, and one window takes 64"),
        (b"", "0 tokens, and one window takes 64"),
    ],
)
def test_text_that_cannot_be_used_is_named(
    debug_folder: Path, tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TextError, match=f"text.txt: .*{message}"):
        measure((path,), debug_folder)


def test_a_folder_and_a_huge_file_are_no_text(debug_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TextError, match="is a folder; a regular file is needed"):
        measure((tmp_path,), debug_folder)
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(MAX_TEXT_BYTES + 1)
    with pytest.raises(TextError, match="at most"):
        measure((tmp_path / "huge",), debug_folder)


def test_different_tokenizers_are_not_compared(
    debug_folder: Path, texts: tuple[Path, Path]
) -> None:
    with pytest.raises(UsageError, match="different tokens of the same text"):
        measure(texts, debug_folder, "smollm2-135m", max_windows=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 1}, "window is 1"),
        ({"window": 513}, "holds 512 tokens"),
        ({"max_windows": 0}, "max_windows is 0"),
        ({"texts": ()}, "nothing to evaluate on"),
    ],
)
def test_options_out_of_range(
    debug_folder: Path, texts: tuple[Path, Path], options: dict[str, Any], message: str
) -> None:
    given = {"subjects": (str(debug_folder),), "texts": texts, **options}
    with pytest.raises(UsageError, match=message):
        evaluate(EvalRequest(**given), SilentProgress())
