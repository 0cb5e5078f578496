"""Small faults, how each gets into a good bundle, and what must be said of it.

A row is a name, the target whose debug bundle is changed, the change, and the finding: its code and
its place. `lies` marks faults whose author made every hash agree, so that only the fault itself is
left to be found.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from tests.faults import forging as forge
from tests.faults.forging import Json, edit_json, edit_manifest, put

Plant = Callable[[Path], object]

DOWN: Final = "model.layers.1.mlp.down_proj.weight"
TEMPLATE: Final = "tokenizer_config.json: chat_template"
GENERATION_EOS: Final = "generation_config.json: eos_token_id"


@dataclass(frozen=True)
class Fault:
    name: str
    target: str
    plant: Plant
    code: str
    where: str
    #: what the author of the fault makes agree afterwards: "nothing", "files" or "text"
    lies: str = "nothing"

    def into(self, folder: Path) -> None:
        """Plant it into a copy of the target's bundle."""
        self.plant(folder)
        {"nothing": lambda _: None, "files": forge.rehash, "text": forge.rewrite_text}[self.lies](
            folder
        )


def manifest(place: str, value: object) -> Plant:
    return lambda folder: edit_manifest(folder, lambda found: put(found, place, value))


def field(file: str, place: str, value: object) -> Plant:
    return lambda folder: edit_json(folder / file, lambda found: put(found, place, value))


def edited(file: str, change: Callable[[Json], None]) -> Plant:
    return lambda folder: edit_json(folder / file, change)


def in_manifest(change: Callable[[Json], None]) -> Plant:
    return lambda folder: edit_manifest(folder, change)


# Files


def lose_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def garble_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"format_version": 1,')


def inflate_manifest(folder: Path) -> None:
    with (folder / "manifest.json").open("r+b") as stream:
        stream.truncate(17 << 20)


def truncate_data(folder: Path) -> None:
    path = folder / "model.onnx.data"
    path.write_bytes(path.read_bytes()[:-1])


def flip_bit(folder: Path) -> None:
    forge.edit_bytes(folder / "model.pte", 9000, lambda piece: bytes([piece[0] ^ 1]), 1)


def lose_file(folder: Path) -> None:
    (folder / "generation_config.json").unlink()


def link_outside(folder: Path) -> None:
    outside = folder.parent / "elsewhere"
    (folder / "model.onnx.data").rename(outside)
    (folder / "model.onnx.data").symlink_to(outside)


def link_unlisted(folder: Path) -> None:
    """A folder that the manifest says nothing of, and that is somebody else's."""
    (folder / "weights").symlink_to(folder.parent, target_is_directory=True)


def add_file(folder: Path) -> None:
    (folder / "plugin.so").write_bytes(b"\x7fELF")


def cut_program(folder: Path) -> None:
    path = folder / "model.pte"
    path.write_bytes(path.read_bytes()[:-4096])


def garble_graph(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"\xff" * 64)


FILES: Final = (
    Fault("lost manifest", "onnx", lose_manifest, "manifest.missing", "manifest.json"),
    Fault("half a manifest", "onnx", garble_manifest, "manifest.not_json", "manifest.json"),
    Fault("huge manifest", "onnx", inflate_manifest, "manifest.too_large", "manifest.json"),
    Fault(
        "manifest of a newer version",
        "onnx",
        manifest("format_version", 2),
        "manifest.version",
        "manifest.json: format_version",
    ),
    Fault(
        "context of nothing",
        "onnx",
        manifest("artifact.max_context", 0),
        "manifest.schema",
        "manifest.json: artifact.max_context",
    ),
    Fault(
        "path out of the folder",
        "onnx",
        in_manifest(lambda found: put(found["files"][0], "path", "../secret")),
        "files.outside",
        "manifest.json",
    ),
    Fault("link out of the folder", "onnx", link_outside, "files.symlink", "model.onnx.data"),
    Fault("unlisted link out of the folder", "onnx", link_unlisted, "files.symlink", "weights"),
    Fault("lost file", "android", lose_file, "files.missing", "generation_config.json"),
    Fault("truncated data file", "onnx", truncate_data, "files.size", "model.onnx.data"),
    Fault("flipped bit", "android", flip_bit, "files.sha256", "model.pte"),
    Fault("stowaway", "onnx", add_file, "files.unlisted", "plugin.so"),
    Fault("program cut off", "android", cut_program, "artifact.unreadable", "model.pte", "files"),
    Fault("graph of noise", "onnx", garble_graph, "artifact.unreadable", "model.onnx", "files"),
)

# Promises


def keep_three_languages(found: Json) -> None:
    put(found["text"], "golden_tokens", found["text"]["golden_tokens"][:3])


PROMISES: Final = (
    Fault(
        "failed verdict",
        "onnx",
        manifest("verdict", "failed"),
        "verdict.failed",
        "manifest.json: verdict",
    ),
    Fault(
        "measurements that failed",
        "onnx",
        field("parity.json", "passed", False),
        "verdict.measurements",
        "parity.json: passed",
        "files",
    ),
    Fault(
        "backend of another target",
        "onnx",
        manifest("target", "ios"),
        "target.backend",
        "manifest.json: target, backend",
    ),
    Fault(
        "runtime from the future",
        "onnx",
        manifest("versions.onnxruntime", "99.0"),
        "runtime.version",
        "manifest.json: versions.onnxruntime",
    ),
    Fault(
        "context beyond the model",
        "onnx",
        manifest("artifact.max_context", 1024),
        "context.exceeds_model",
        "manifest.json: artifact.max_context",
    ),
    Fault(
        "layer that the manifest calls 8-bit",
        "onnx",
        in_manifest(lambda found: forge.tensors(found)[DOWN].update(bits=8)),
        "codes.unquantized",
        f"manifest.json: tensors {DOWN}",
    ),
    Fault(
        "weight that the manifest leaves out",
        "onnx",
        in_manifest(lambda found: found["tensors"].remove(forge.tensors(found)[DOWN])),
        "codes.missing",
        f"manifest.json: tensors {DOWN}",
    ),
    Fault(
        "languages left out",
        "onnx",
        in_manifest(
            lambda found: put(found["text"], "golden_tokens", found["text"]["golden_tokens"][:3])
        ),
        "tokenizer.golden_tokens",
        "manifest.json: text.golden_tokens",
    ),
)

# Text


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
    token = next(entry for entry in tokenizer["added_tokens"] if entry["content"] == "<|im_end|>")
    token["special"] = False


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
        "two merged ids swapped behind a forged hash",
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
        "end token of another model",
        "onnx",
        field("generation_config.json", "eos_token_id", [0, 2, 9]),
        "eos.foreign",
        GENERATION_EOS,
        "files",
    ),
)

# What the model says


def graph_field(key: str, place: str, value: object) -> Plant:
    def change(found: Json) -> None:
        put(found, place, value)

    return lambda folder: forge.edit_onnx_metadata(folder, f"llama_edge.{key}", change)


def constant(method: str, *numbers: int) -> Plant:
    return lambda folder: forge.set_constant(folder, method, *numbers)


def says(name: str, target: str, plant: Plant, code: str, where: str) -> Fault:
    return Fault(name, target, plant, code, where, "files")


METADATA: Final = (
    says(
        "end token that the .pte lacks",
        "android",
        constant("get_eos_ids", 0),
        "eos.missing",
        "model.pte: get_eos_ids",
    ),
    says(
        "end token that genai_config lacks",
        "onnx",
        field("genai_config.json", "model.eos_token_id", [2]),
        "eos.missing",
        "genai_config.json: model.eos_token_id",
    ),
    says(
        "end token that the package lacks",
        "ios",
        lambda folder: forge.edit_package_metadata(
            folder, "llama_edge.eos_token_ids", lambda ids: ids[:1]
        ),
        "eos.missing",
        "model.mlpackage: llama_edge.eos_token_ids",
    ),
    says(
        "context in the .pte longer than its cache",
        "android",
        constant("get_max_context_len", 2048),
        "context.cache",
        "model.pte: get_max_context_len",
    ),
    says(
        "cache shorter than the context",
        "android",
        partial(forge.shrink_caches, tokens=256),
        "context.cache",
        "model.pte: forward, cache 0",
    ),
    says(
        "context in genai_config longer than the rope tables",
        "onnx",
        field("genai_config.json", "model.context_length", 4096),
        "context.cache",
        "genai_config.json: model.context_length",
    ),
    says(
        "search longer than the context",
        "onnx",
        field("genai_config.json", "search.max_length", 4096),
        "context.cache",
        "genai_config.json: search.max_length",
    ),
    says(
        "context in the package shorter than promised",
        "ios",
        lambda folder: forge.edit_package_metadata(
            folder, "llama_edge.lowering", lambda found: {**found, "max_context": 256}
        ),
        "context.cache",
        "model.mlpackage: llama_edge.lowering",
    ),
    says(
        "prompts longer than one call takes",
        "android",
        constant("get_max_seq_len", 128),
        "context.prefill",
        "model.pte: get_max_seq_len",
    ),
    says(
        "begin token of another model in the .pte",
        "android",
        constant("get_bos_id", 1),
        "tokenizer.bos",
        "model.pte: get_bos_id",
    ),
    says(
        "vocabulary of another model in genai_config",
        "onnx",
        field("genai_config.json", "model.vocab_size", 128256),
        "artifact.metadata",
        "genai_config.json: model.vocab_size",
    ),
    says(
        "no cache, says the .pte",
        "android",
        constant("use_kv_cache", 0),
        "artifact.metadata",
        "model.pte: use_kv_cache",
    ),
    says(
        "package of another tokenizer",
        "ios",
        edited("tokenizer_config.json", lambda config: config.pop("chat_template")),
        "template.missing",
        TEMPLATE,
    ),
    says(
        "epsilon 1e-6 for 1e-5",
        "onnx",
        graph_field("config", "rms_norm_eps", 1e-6),
        "artifact.config",
        "model.onnx: rms_norm_eps",
    ),
    says(
        "another rope theta",
        "onnx",
        graph_field("config", "rope_theta", 500000.0),
        "artifact.config",
        "model.onnx: rope_theta",
    ),
    says(
        "activations left in floating point",
        "onnx",
        graph_field("lowering", "accuracy_level", 0),
        "artifact.activation",
        "model.onnx: activation_quantization",
    ),
    says(
        "cache of another number type",
        "android",
        manifest("artifact.kv_cache", "int8"),
        "artifact.kv_cache",
        "model.pte: kv_cache",
    ),
    says(
        "input of another number type",
        "onnx",
        in_manifest(
            lambda found: put(found["artifact"]["interface"]["inputs"][0], "dtype", "int32")
        ),
        "artifact.interface",
        "model.onnx: inputs input_ids",
    ),
    says(
        "head outside of the delegates",
        "android",
        forge.drop_last_delegate,
        "artifact.delegation",
        "model.pte: linears",
    ),
)

# Codes

CODES: Final = (
    says(
        "one nibble pair swapped in a .pte",
        "android",
        lambda folder: forge.edit_pte_data(folder, f"{DOWN}.codes", forge.swap_nibbles),
        "codes.sha256",
        f"model.pte: {DOWN}",
    ),
    says(
        "one nibble pair swapped in ONNX",
        "onnx",
        lambda folder: forge.edit_onnx_data(folder, f"{DOWN}.codes", forge.swap_nibbles),
        "codes.sha256",
        f"model.onnx: {DOWN}",
    ),
    says(
        "one nibble pair swapped in a package",
        "ios",
        lambda folder: forge.edit_package_data(folder, DOWN, "data", forge.swap_nibbles),
        "codes.sha256",
        f"model.mlpackage/Manifest.json: {DOWN}",
    ),
    says(
        "one scale off by one bfloat16 step in a .pte",
        "android",
        lambda folder: forge.edit_pte_data(folder, f"{DOWN}.scales", forge.next_bf16),
        "codes.scales",
        f"model.pte: {DOWN}",
    ),
    says(
        "one scale off by one bfloat16 step in ONNX",
        "onnx",
        lambda folder: forge.edit_onnx_data(folder, f"{DOWN}.scales", forge.next_bf16),
        "codes.scales",
        f"model.onnx: {DOWN}",
    ),
    says(
        "one scale off by one bfloat16 step in a package",
        "ios",
        lambda folder: forge.edit_package_data(folder, DOWN, "scale", forge.next_fp16_that_is_bf16),
        "codes.scales",
        f"model.mlpackage/Manifest.json: {DOWN}",
    ),
    says(
        "a layer left unquantized",
        "onnx",
        partial(forge.leave_unquantized, name=DOWN),
        "codes.unquantized",
        f"model.onnx: {DOWN}",
    ),
    says(
        "weight that the .pte lost",
        "android",
        partial(forge.drop_named_data, key=f"{DOWN}.codes"),
        "codes.missing",
        f"model.pte: {DOWN}",
    ),
)

DOCTOR: Final = (*FILES, *PROMISES, *TEXT, *METADATA, *CODES)
