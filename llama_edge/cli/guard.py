"""`guard`: is a prompt, or the last message of a conversation, safe."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llama_edge.cli.console import (
    JsonOption,
    PublicKeyOption,
    RuntimeOption,
    print_json,
    say,
    trust_in,
)
from llama_edge.core.errors import UsageError

if TYPE_CHECKING:
    from llama_edge.bundle.signing import Trust
    from llama_edge.generate.guard import Guard, GuardVerdict
    from llama_edge.text.dialog import Message
    from llama_edge.text.guard_prompt import Category

CategoriesOption = typer.Option(
    "--categories",
    help="Some of S1 to S13, as S1,S9; or a JSON file of your own: code and name, or categories, a "
    "list of code, name and description.",
)
ThresholdOption = typer.Option(
    "--threshold", help="Unsafe from this probability on; 0.5 is the model's own choice."
)


def guard(
    bundle: Annotated[Path, typer.Argument(help="The folder of a Llama Guard's bundle.")],
    text: Annotated[
        str | None,
        typer.Argument(help="A prompt. Without it and --dialog: each line of stdin is one."),
    ] = None,
    *,
    dialog: Annotated[
        Path | None,
        typer.Option(help="JSON with messages, as chat's /save writes it; the last one is judged."),
    ] = None,
    categories: Annotated[str | None, CategoriesOption] = None,
    threshold: Annotated[float, ThresholdOption] = 0.5,
    runtime: Annotated[str | None, RuntimeOption] = None,
    public_key: Annotated[Path | None, PublicKeyOption] = None,
    as_json: Annotated[bool, JsonOption] = False,
) -> None:
    """Say whether a message is safe, and which hazard categories it falls into if not.

    A user's message is judged as a question, an assistant's as an answer. Ends with 1 if a message
    is unsafe.
    """
    from llama_edge.generate.bundle_model import BundleModel
    from llama_edge.generate.guard import Guard

    if text is not None and dialog is not None:
        raise UsageError("give a prompt or --dialog, not both")
    asked = read_categories_option(categories)
    conversations = _conversations(text, dialog)
    model = BundleModel(bundle, runtime, trust_in(public_key))
    found: list[GuardVerdict] = []
    with Guard(model, asked, threshold) as opened:
        warn_of_guard(opened)
        for messages in conversations:
            verdict = opened.check(messages)
            found.append(verdict)
            if not as_json:
                say(_line(opened, verdict))
    if as_json:
        print_json({"threshold": threshold, "verdicts": [_object(opened, each) for each in found]})
    if not all(verdict.safe for verdict in found):
        raise typer.Exit(1)


def read_categories_option(value: str | None) -> "tuple[Category, ...] | None":
    """What `--categories` names.

    Raises:
        UsageError: A code is unknown, or the file has another form.
    """
    from llama_edge.core.json_files import read_json_object
    from llama_edge.text.guard_prompt import read_categories, select_categories

    if value is None:
        return None
    if value.endswith(".json") or Path(value).is_file():
        return read_categories(read_json_object(Path(value), UsageError), value)
    return select_categories(code.strip() for code in value.split(",") if code.strip())


def guard_of(
    folder: Path | None, categories: str | None, threshold: float, trust: "Trust"
) -> "Callable[[], Guard] | None":
    """Opens the guard that `--guard` names, if it names one; its bundle is checked here.

    Raises:
        UsageError: It names none, and there are categories or a threshold for it.
    """
    from llama_edge.generate.bundle_model import BundleModel
    from llama_edge.generate.guard import DEFAULT_THRESHOLD, Guard

    if folder is None:
        if categories is not None or threshold != DEFAULT_THRESHOLD:
            raise UsageError("--categories and --threshold are a guard's; name it by --guard")
        return None
    asked = read_categories_option(categories)
    model = BundleModel(folder, trust=trust)

    def opened() -> Guard:
        guard = Guard(model, asked, threshold)
        warn_of_guard(guard)
        return guard

    return opened


def warn_of_guard(opened: "Guard") -> None:
    """What a person should know before they trust its verdicts."""
    if opened.model.failed_gate:
        say("warning: the guard's bundle failed its gate; see its parity.json", err=True)
    if not opened.own_template:
        say(
            "note: the bundle's own chat template does not write this guard prompt; the published "
            "one of Llama Guard 3 1B is used",
            err=True,
        )


def _conversations(text: str | None, dialog: Path | None) -> "Iterator[list[Message]]":
    from llama_edge.core.json_files import read_json_object

    if dialog is not None:
        messages = read_json_object(dialog, UsageError).get("messages")
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            raise UsageError(f'{dialog}: {{"messages": [...]}} is needed, as chat\'s /save writes')
        return iter([messages])
    lines = (line.rstrip("\n") for line in sys.stdin) if text is None else iter([text])
    return ([{"role": "user", "content": line}] for line in lines if line.strip())


def _line(opened: "Guard", verdict: "GuardVerdict") -> str:
    named = ", ".join(f"{code} {opened.name_of(code)}" for code in verdict.codes)
    said = "safe" if verdict.safe else f"unsafe: {named}"
    dropped = f"; the {verdict.dropped} oldest messages did not fit" if verdict.dropped else ""
    return f"{said} (probability of unsafe {verdict.unsafe_probability:.4f}{dropped})"


def _object(opened: "Guard", verdict: "GuardVerdict") -> dict[str, Any]:
    return {
        "safe": verdict.safe,
        "categories": [{"code": c, "name": opened.name_of(c)} for c in verdict.codes],
        "unsafe_probability": verdict.unsafe_probability,
        "side": verdict.side,
        "dropped_messages": verdict.dropped,
    }
