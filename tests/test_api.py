"""What people import: export a model, open the bundle, and use it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import llama_edge
from llama_edge.core.errors import ArtifactError, CheckFailedError, SessionError, UsageError
from llama_edge.generate.assistant import AnswerConfig
from llama_edge.generate.run import PromptRequest, Run

pytestmark = pytest.mark.onnx


@pytest.fixture(scope="module")
def bundle(debug_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> llama_edge.Bundle:
    out = tmp_path_factory.mktemp("api") / "bundle"
    return llama_edge.export(debug_folder, "onnx", out=out, recipe="w4a8-rtn", max_context=384)


def test_a_bundle_answers_as_the_command_does(bundle: llama_edge.Bundle) -> None:
    opened = llama_edge.open_bundle(str(bundle.root))
    assert opened == bundle
    request = PromptRequest(prompt="the lighthouse", config=AnswerConfig(max_new_tokens=12))
    assert opened.generate("the lighthouse", max_new_tokens=12) == "".join(
        Run(bundle.root, request)
    )
    warm = {"temperature": 1.0, "max_new_tokens": 12}
    answers = [opened.generate("a", seed=seed, **warm) for seed in (1, 1, 2)]  # type: ignore[arg-type]
    assert answers[0] == answers[1] != answers[2]


def test_the_checks_pass_and_find_what_is_wrong(bundle: llama_edge.Bundle, tmp_path: Path) -> None:
    assert bundle.doctor().passed
    assert bundle.parity().passed
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(bundle.root), str(copy)], check=True)
    (copy / "generation_config.json").write_text("{}")
    with pytest.raises(CheckFailedError):
        llama_edge.open_bundle(copy)


def test_a_second_turn_reads_its_own_tokens(bundle: llama_edge.Bundle) -> None:
    """And answers what a fresh session does."""
    with bundle.chat(system="an in", max_new_tokens=1) as chat:
        first = chat.send("the")
        held = list(chat._assistant._cache._held)
        second = chat.send("on")
        prompt = chat._encode(chat.messages[:-1])
        assert prompt[: len(held)] == held
        assert chat.prompt_tokens == len(prompt) - len(held) > 0
    assert [message["role"] for message in chat.messages] == ["system", *("user", "assistant") * 2]
    assert [chat.messages[place]["content"] for place in (2, 4)] == [first, second]
    with bundle.chat(system="an in", max_new_tokens=1) as fresh:
        assert fresh.send("the") == first
        fresh._assistant._cache._held = []
        assert fresh.send("on") == second
        assert fresh.prompt_tokens == len(prompt)


def test_a_stored_system_prompt_is_not_read_again(
    bundle: llama_edge.Bundle, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(bundle.root, tmp_path / "copy"))
    warmed = llama_edge.open_bundle(copy).warm("an in")
    assert warmed == llama_edge.open_bundle(copy) != bundle
    with bundle.chat(system="an in", max_new_tokens=1) as cold:
        expected = cold.send("the")
    with warmed.chat(system="an in", max_new_tokens=1) as chat:
        assert chat.send("the") == expected
        assert chat.prompt_tokens < cold.prompt_tokens == chat.dialog_tokens
    with pytest.raises(UsageError, match="the system prompt is empty"):
        warmed.warm("")


def test_a_full_context_drops_the_oldest_and_keeps_the_system_prompt(
    bundle: llama_edge.Bundle,
) -> None:
    with bundle.chat(system="an in", max_new_tokens=8) as chat:
        dropped = 0
        for _ in range(8):
            chat.send("the lighthouse on the hill")
            dropped += chat.dropped
        assert dropped > 0
        assert chat.messages[0]["role"] == "system"
        with pytest.raises(SessionError, match="shorten it"):
            chat.send("the lighthouse " * 200)
        assert chat.send("the")


def test_a_stream_that_is_given_up_leaves_the_dialog(bundle: llama_edge.Bundle) -> None:
    with bundle.chat(max_new_tokens=8) as chat:
        next(iter(chat.stream("the")))
        assert chat.messages == ()
        alone = chat.send("on")
    with bundle.chat(max_new_tokens=8) as chat:
        assert chat.send("on") == alone


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_cache": "int3"}, "'float32', 'float16', 'int8'"),
        ({"prefill": "some"}, "'flexible', 'fixed'"),
        ({"device": "tpu"}, "'cpu', 'cuda'"),
        ({"recipe": Path("w5")}, "recipe 'w5' is unknown"),
        ({"recipe": "w4a8-rtn", "seed": 1}, "draws nothing at random"),
        ({"recipe": "w4a8-rtn", "text_cache": "text"}, "--text-cache text: .* reads no text"),
    ],
)
def test_a_value_that_is_not_known_is_refused(
    debug_folder: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        llama_edge.export(debug_folder, "onnx", **options)  # type: ignore[arg-type]


def test_what_cannot_be_opened(tmp_path: Path, bundle: llama_edge.Bundle) -> None:
    with pytest.raises(ArtifactError):
        llama_edge.open_bundle(tmp_path)
    with pytest.raises(UsageError, match="max_new_tokens is 384"):
        bundle.chat(max_new_tokens=384)


def test_the_example_of_the_documentation_runs(
    debug_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    call = f'export("{debug_folder}", "onnx", out="bundles/smollm2-135m-onnx",'
    changed = code.replace('export("smollm2-135m", "onnx",', call)
    assert changed != code
    exec(changed, {})


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, llama_edge; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'exports'"):
        llama_edge.exports  # noqa: B018
