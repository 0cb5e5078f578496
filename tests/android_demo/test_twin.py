"""The app's own text path over a real bundle: Kotlin on the JVM, SmolLM2 after `serve --stdio`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llama_edge.bundle.folder import Bundle
from llama_edge.generate.assistant import AnswerConfig
from llama_edge.generate.run import PromptRequest, Run
from tests.app_fixtures.files import ROOT

BUILT = ROOT / "android_demo/check/build"
CLASSES = [
    BUILT / "out/core",
    BUILT / "out/twin",
    BUILT / "tools/kotlin/lib/kotlin-stdlib.jar",
    BUILT / "tools/debian/usr/share/java/bcprov.jar",
]

#: As `twin/Main.kt` has them.
SYSTEM_PROMPT, MAX_NEW_TOKENS = "You are a helpful assistant.", 48

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(path.exists() for path in CLASSES) or shutil.which("java") is None,
        reason="the twin is not compiled: run `make android-check` first",
    ),
]


def talk(bundle: Path, *lines: str) -> tuple[int, list[dict[str, Any]]]:
    program = "from llama_edge.cli import main; main()"
    command = ["java", "-cp", os.pathsep.join(map(str, CLASSES)), "org.llamaedge.twin.MainKt"]
    done = subprocess.run(
        [*command, str(bundle), sys.executable, "-c", program],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert "Exception" not in done.stderr, done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_smollm2_answers_through_the_apps_own_text_path(android_bundle: Bundle) -> None:
    question = "What is the capital of France?"
    code, replies = talk(
        android_bundle.root,
        question,
        "And of Italy?",
        "/reset",
        question,
        f"/stop 2 {question}",
        "/reset",
        f"/until Paris {question}",
    )
    first, second, reset, again, stopped, _, until = replies
    assert code == 0
    assert "Paris" in first["text"]
    request = PromptRequest(
        prompt=question, system=SYSTEM_PROMPT, config=AnswerConfig(max_new_tokens=MAX_NEW_TOKENS)
    )
    assert first["text"] == "".join(Run(android_bundle.root, request))
    assert first["pieces"] > 1
    assert first["reason"] in ("END_TOKEN", "MAX_NEW_TOKENS")
    assert (first["messages"], second["messages"]) == (2, 4)
    assert second["text"] != first["text"]
    assert reset == {"reset": True}
    assert again["text"] == first["text"], "greedy, from an empty cache"
    assert stopped["reason"] == "CANCELLED"
    assert stopped["new_tokens"] < first["new_tokens"]
    assert until["text"] == first["text"].split("Paris")[0]


def test_a_changed_bundle_is_refused_before_anything_runs(
    android_bundle: Bundle, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(android_bundle.root, tmp_path / "copy"))
    config = json.loads((copy / "tokenizer_config.json").read_text())
    config["chat_template"] += " "
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    code, replies = talk(copy, "Hello?")
    assert code == 1
    assert [finding["code"] for finding in replies[0]["refused"]] == ["files.size"]
