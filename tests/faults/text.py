"""Faults of tokenizer, template and end tokens."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from tests.faults import forging as forge
from tests.faults.fault import (
    GENERATION_EOS,
    TEMPLATE,
    Fault,
    edited,
    field,
    in_manifest,
    manifest,
)
from tests.faults.forging import Json, edit_json, put


def forge_tokenizer_hash(folder: Path) -> None:
    """Even the tokenizer's own hash agrees; the golden tokens are the model's still."""
    edit_json(folder / "tokenizer.json", forge.merged_ids_swapped)
    digest = forge.sha256((folder / "tokenizer.json").read_text())
    manifest("text.tokenizer_sha256", digest)(folder)


def change_template(folder: Path, change: Callable[[str], str]) -> str:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    put(config, "chat_template", change(config["chat_template"]))
    path.write_text(json.dumps(config))
    return str(config["chat_template"])


def widen_space(template: str) -> str:
    return template.replace(r"assistant\n", r"assistant \n").replace("assistant\n", "assistant \n")


def widen_space_in_both(folder: Path) -> None:
    manifest("text.chat_template", change_template(folder, widen_space))(folder)


def begin_template_twice(folder: Path) -> None:
    change_template(folder, lambda template: "{{ bos_token }}{{ bos_token }}" + template)


def unfinish_template(folder: Path) -> None:
    change_template(folder, lambda template: template + "{% if")


def loop_template(folder: Path) -> None:
    change_template(folder, lambda _: "{% for i in range(99999) %}{{ i }}{% endfor %}")


def drop_template(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", lambda config: config.pop("chat_template"))


def make_plain(tokenizer: Json) -> None:
    kept = [entry for entry in tokenizer["added_tokens"] if entry["content"] != "<|im_end|>"]
    tokenizer["added_tokens"] = kept


def garble_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": {}}')


def change_chat_tokens(found: Json) -> None:
    found["text"]["golden_chats"][1]["tokens"][4] += 1


def add_tokens(tokenizer: Json) -> None:
    """More tokens than the model has rows."""
    for number in range(256, 300):
        tokenizer["model"]["vocab"][f"extra{number}"] = number


TEXT: Final = (
    Fault(
        "two merged ids swapped",
        "onnx",
        edited("tokenizer.json", forge.merged_ids_swapped),
        "tokenizer.sha256",
        "tokenizer.json",
        "files",
    ),
    Fault(
        "two merged ids swapped after a forged hash",
        "onnx",
        forge_tokenizer_hash,
        "tokenizer.golden_tokens",
        "tokenizer.json: golden_tokens[0] (en)",
        "files",
    ),
    Fault(
        "half a tokenizer",
        "onnx",
        garble_tokenizer,
        "tokenizer.unreadable",
        "tokenizer.json",
        "files",
    ),
    Fault(
        "end of turn as plain text",
        "onnx",
        edited("tokenizer.json", make_plain),
        "tokenizer.special_tokens",
        "tokenizer.json: <|im_end|>",
        "text",
    ),
    Fault(
        "another begin token",
        "onnx",
        field("tokenizer_config.json", "bos_token", "<|im_start|>"),
        "tokenizer.bos",
        "tokenizer_config.json: bos_token",
        "files",
    ),
    Fault(
        "begin token added to text",
        "onnx",
        field("tokenizer_config.json", "add_bos_token", True),
        "tokenizer.bos",
        "tokenizer_config.json: add_bos_token",
        "files",
    ),
    Fault(
        "begin token twice, by the template",
        "onnx",
        begin_template_twice,
        "tokenizer.double_bos",
        TEMPLATE,
        "text",
    ),
    Fault(
        "begin token twice, by the tokenizer",
        "onnx",
        edited("tokenizer.json", forge.begin_twice),
        "tokenizer.double_bos",
        "tokenizer.json: post_processor",
        "text",
    ),
    Fault(
        "tokenizer larger than the model",
        "onnx",
        edited("tokenizer.json", add_tokens),
        "tokenizer.vocabulary",
        "tokenizer.json",
        "text",
    ),
    Fault(
        "template with a changed space",
        "onnx",
        partial(change_template, change=widen_space),
        "template.source",
        TEMPLATE,
        "files",
    ),
    Fault(
        "template with a changed space, in the manifest too",
        "onnx",
        widen_space_in_both,
        "template.text",
        f"{TEMPLATE}, golden_chats[0]",
        "files",
    ),
    Fault(
        "tools called in another form",
        "onnx",
        manifest("tools.format", "pythonic"),
        "template.text",
        "manifest.json: tools",
    ),
    Fault("no template", "onnx", drop_template, "template.missing", TEMPLATE, "files"),
    Fault(
        "unfinished template", "onnx", unfinish_template, "template.unrenderable", TEMPLATE, "files"
    ),
    Fault("endless template", "onnx", loop_template, "template.unrenderable", TEMPLATE, "files"),
    Fault(
        "dialog of other tokens",
        "onnx",
        in_manifest(change_chat_tokens),
        "template.tokens",
        f"{TEMPLATE}, golden_chats[1]",
    ),
    Fault(
        "another temperature",
        "android",
        field("generation_config.json", "temperature", 1.5),
        "text.generation_defaults",
        "generation_config.json: temperature",
        "files",
    ),
    Fault(
        "end token that only tokenizer_config names",
        "onnx",
        field("generation_config.json", "eos_token_id", [0]),
        "eos.precedence",
        GENERATION_EOS,
        "files",
    ),
    Fault(
        "end of document where the end of a turn belongs",
        "onnx",
        field("tokenizer_config.json", "eos_token", "<|endoftext|>"),
        "eos.precedence",
        "tokenizer_config.json: eos_token",
        "files",
    ),
    Fault(
        "end token lost in generation_config",
        "onnx",
        field("generation_config.json", "eos_token_id", [2]),
        "eos.missing",
        GENERATION_EOS,
        "files",
    ),
    Fault(
        "end token that the manifest leaves out",
        "android",
        manifest("text.eos_token_ids", [0]),
        "eos.missing",
        "manifest.json: text.eos_token_ids",
    ),
    Fault(
        "end token of another model",
        "onnx",
        field("generation_config.json", "eos_token_id", [0, 2, 9]),
        "eos.foreign",
        GENERATION_EOS,
        "files",
    ),
)
