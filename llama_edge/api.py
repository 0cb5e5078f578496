"""The Python API: export a model, and use the bundle.

    import llama_edge

    bundle = llama_edge.export("smollm2-135m", "android", recipe="w4a8-rtn")
    print(bundle.generate("What is the capital of France?"))
    with bundle.chat(system="Answer in one sentence.") as chat:
        print(chat.send("Who wrote Faust?"))
        print(chat.send("When?"))
    assert bundle.doctor().passed and bundle.parity().passed

Every error is an `llama_edge.core.errors.LlamaEdgeError` whose message says what to do.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from llama_edge.backends.base import LowerOptions
from llama_edge.bundle import folder
from llama_edge.bundle.doctor import diagnose
from llama_edge.bundle.examination import Diagnosis
from llama_edge.bundle.manifest import Manifest
from llama_edge.bundle.signing import NO_KEY, Trust, load_public_key
from llama_edge.core.artifact import KVCacheDtype, PrefillLengths
from llama_edge.core.errors import UsageError
from llama_edge.core.progress import Progress, SilentProgress
from llama_edge.core.recipe import Device
from llama_edge.gate.check_bundle import check_bundle
from llama_edge.gate.gate import GateOutcome
from llama_edge.generate.assistant import AnswerConfig
from llama_edge.generate.bundle_model import BundleModel
from llama_edge.generate.chat import Chat
from llama_edge.generate.guard import DEFAULT_THRESHOLD, Guard
from llama_edge.generate.guarded_chat import GuardedChat
from llama_edge.generate.run import PromptRequest, Run
from llama_edge.generate.structure import ANYTHING, build_structure
from llama_edge.generate.warm import WarmRequest, warm_bundle
from llama_edge.pipeline.export import ExportRequest, export_model
from llama_edge.suites.request import suite_request
from llama_edge.text.generate import DEFAULT_MAX_NEW_TOKENS, SamplingConfig
from llama_edge.text.guard_prompt import Category
from llama_edge.text.tools import Tool

E = TypeVar("E", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files are what its manifest says."""

    root: Path
    manifest: Manifest
    public_key: Path | None = None

    def generate(
        self,
        prompt: str,
        *,
        system: str | None = None,
        raw: bool = False,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        runtime: str | None = None,
        schema: Mapping[str, Any] | None = None,
        regex: str | None = None,
        tools: Sequence[Tool | Mapping[str, Any]] = (),
        tool_choice: str | None = None,
    ) -> str:
        """The answer to one prompt; the arguments are those of `stream`."""
        return "".join(
            self.stream(
                prompt,
                system=system,
                raw=raw,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                seed=seed,
                runtime=runtime,
                schema=schema,
                regex=regex,
                tools=tools,
                tool_choice=tool_choice,
            )
        )

    def stream(
        self,
        prompt: str,
        *,
        system: str | None = None,
        raw: bool = False,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        runtime: str | None = None,
        schema: Mapping[str, Any] | None = None,
        regex: str | None = None,
        tools: Sequence[Tool | Mapping[str, Any]] = (),
        tool_choice: str | None = None,
    ) -> Iterator[str]:
        """The answer to one prompt as it comes, whole characters only.

        Args:
            prompt: What to say to the model.
            system: A system prompt.
            raw: Continue the prompt as it is, without the chat template.
            max_new_tokens: Stop after so many tokens.
            temperature: 0 takes the most probable token each time.
            top_p: Sample from the smallest set with this probability.
            top_k: Sample from so many tokens; 0: from all.
            seed: The same seed samples the same text.
            runtime: None takes the one that the gate uses.
            schema: The answer is JSON that is valid under this JSON Schema.
            regex: The whole answer matches this.
            tools: Functions that the model may call, in OpenAI's form or the functions alone; an
                answer that is a call is read by `llama_edge.text.tool_calls.parse_tool_calls`.
            tool_choice: "auto" (the default), "none", "required" or the name of a tool.

        Raises:
            UsageError: A value is out of range, the runtime is another backend's, or a schema has
                what cannot be kept.
            TokenizerError: There is no chat template, and `raw` is off.
            SessionError: The prompt does not fit the context.
            RuntimeCrashError: The runtime died or hung.
        """
        sampling = SamplingConfig(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
        request = PromptRequest(
            prompt=prompt,
            system=system,
            raw=raw,
            config=AnswerConfig(max_new_tokens=max_new_tokens, sampling=sampling),
            structure=build_structure(
                schema=schema, regex=regex, tools=tools, tool_choice=tool_choice
            ),
            runtime=runtime,
        )
        yield from Run(self.root, request, _trust(self.public_key))

    def chat(
        self,
        *,
        system: str | None = None,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        runtime: str | None = None,
        guard: Guard | None = None,
        schema: Mapping[str, Any] | None = None,
        regex: str | None = None,
        tools: Sequence[Tool | Mapping[str, Any]] = (),
        tool_choice: str | None = None,
    ) -> Chat:
        """A conversation, as a context manager; the arguments are those of `stream`.

        A turn reads its own tokens only, while the tokens before it are those in the cache. Where
        the context is full the oldest exchanges are left out, never the system prompt. A `guard`
        checks questions and answers (see `GuardedChat`); the caller closes it.

        Raises:
            UsageError: There is a guard, and the answer may not be any text.
        """
        sampling = SamplingConfig(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
        structure = build_structure(
            schema=schema, regex=regex, tools=tools, tool_choice=tool_choice
        )
        if guard is not None and structure != ANYTHING:
            raise UsageError("a guard is for answers that are any text: no schema, regex or tools")
        open_chat = (
            partial(Chat, structure=structure)
            if guard is None
            else partial(GuardedChat, guard=guard)
        )
        return open_chat(
            self.root,
            system=system,
            config=AnswerConfig(max_new_tokens=max_new_tokens, sampling=sampling),
            runtime=runtime,
            trust=_trust(self.public_key),
        )

    def guard(
        self,
        *,
        categories: Sequence[Category] | None = None,
        threshold: float = DEFAULT_THRESHOLD,
        runtime: str | None = None,
    ) -> Guard:
        """A guard, as a context manager: `check(messages)` judges the last message.

        Args:
            categories: What is unsafe; None asks for what the bundle's template lists.
            threshold: From this probability on a message is unsafe.
            runtime: None takes the one that the gate uses.

        Raises:
            GuardError: The bundle is no Llama Guard.
            UsageError: A value is out of range, or the runtime is another backend's.
        """
        model = BundleModel(self.root, runtime, _trust(self.public_key))
        return Guard(model, categories, threshold)

    def warm(
        self,
        system: str,
        *,
        day: date | None = None,
        runtime: str | None = None,
        progress: Progress | None = None,
    ) -> "Bundle":
        """Store the KV cache of a fixed system prompt in the bundle; see `llama-edge warm`.

        `generate`, `stream` and `chat` with this system prompt then read the question only.

        Args:
            system: The system prompt; what is stored of an earlier one is replaced.
            day: For a chat template that writes the current day: the day that it is told.
            runtime: None takes the one that the gate uses.
            progress: Told of each stage.

        Returns:
            The bundle with its new manifest.

        Raises:
            CheckFailedError: The state, restored, gives other logits than the prompt.
            UsageError: The bundle is signed; or the template writes the current day and there is
                none; or the prompt does not fit the context.
            SessionError: The runtime does not give out its cache.
        """
        request = WarmRequest(system=system, day=day, runtime=runtime)
        made = warm_bundle(
            self.root, request, progress or SilentProgress(), _trust(self.public_key)
        )
        return Bundle(self.root, made.manifest, self.public_key)

    def doctor(self, progress: Progress | None = None) -> Diagnosis:
        """Check everything that can be checked without running the model."""
        return diagnose(self.root, self.public_key, progress or SilentProgress())

    def parity(self, against: str | None = None, progress: Progress | None = None) -> GateOutcome:
        """Run the whole gate again.

        Args:
            against: A full-precision model, for fidelity; None: the built-in one that the bundle
                came from, if it is one.
            progress: Told of each stage.

        Raises:
            CheckpointError: `against` is not a model of this shape.
        """
        trust = _trust(self.public_key)
        return check_bundle(self.root, against, progress or SilentProgress(), trust)


def open_bundle(path: str | Path, *, public_key: str | Path | None = None) -> Bundle:
    """Open a bundle and compare every file with its manifest.

    Args:
        path: The bundle's folder.
        public_key: PEM file of the key that must have signed it; None demands no signature.

    Raises:
        ArtifactError: Not a bundle, or an unsafe one.
        CheckFailedError: A file is not what the manifest says, or not listed there; or the
            signature is not the key's.
        UsageError: The key cannot be read.
    """
    key = None if public_key is None else Path(public_key)
    # Absolute: a notebook may change its folder while it holds the bundle.
    found = folder.open_bundle(Path(path).absolute(), _trust(key))
    return Bundle(found.root, found.manifest, key)


def export(
    model: str | Path,
    target: str,
    *,
    out: str | Path | None = None,
    format: str | None = None,  # noqa: A002 (the option's name)
    recipe: str | Path | None = None,
    seed: int | None = None,
    calibration: Sequence[str | Path] = (),
    text_cache: str | Path | None = None,
    max_context: int | None = None,
    accuracy_level: int | None = None,
    kv_cache: str | None = None,
    prefill: str | None = None,
    device: str | None = None,
    suite: str | Path | None = None,
    require: Sequence[str] = (),
    force: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Quantize, lower, run what was written, and put the bundle in place if it passed.

    Args:
        model: A built-in name, a folder, a GGUF file or a Hugging Face id.
        target: "android", "ios" or "onnx".
        out: Where to; by default `bundles/MODEL-TARGET` under the current folder.
        format: A backend of the target; by default its first.
        recipe: A name that `llama-edge recipes` lists, or the path of a recipe file; by default
            w4a8-mixed, or what a checkpoint that came quantized is.
        seed: Of all that the recipe draws at random; by default the recipe's own.
        calibration: Text files; by default the model writes its own text where one is needed.
        text_cache: A file for the text that the model writes: read if it is there, else written.
        max_context: Tokens that the KV cache holds.
        accuracy_level: ONNX Runtime's; 0 leaves activations in float32, 4 rounds them to int8.
        kv_cache: "float32", "float16" or "int8"; by default what the backend keeps.
        prefill: "flexible" or "fixed", for Core ML.
        device: "cpu" (the default), "cuda" or "mps": where a recipe calibrates.
        suite: A suite of prompts on which the bundle is compared with full precision: "on-device"
            or a file.
        require: What the suite must reach, such as "agreement.th=0.85".
        force: Replace a bundle of ours that is in the way.
        progress: Told of each stage.

    Raises:
        LlamaEdgeError: Of the kinds in `llama_edge.core.errors`; `CheckFailedError` where the
            artifact does not compute what the checkpoint computes, or the suite is missed.
    """
    options = LowerOptions(
        max_context=max_context,
        accuracy_level=accuracy_level,
        kv_cache=_choice("kv_cache", KVCacheDtype, kv_cache),
        prefill=_choice("prefill", PrefillLengths, prefill),
    )
    request = ExportRequest(
        model=str(model),
        target=target,
        format=format,
        recipe=None if recipe is None else str(recipe),
        seed=seed,
        calibration=tuple(map(Path, calibration)),
        text_cache=None if text_cache is None else Path(text_cache),
        out=None if out is None else Path(out),
        options=options,
        suite=suite_request(None if suite is None else str(suite), require, None),
        force=force,
        device=_choice("device", Device, device) or Device.CPU,
    )
    made = export_model(request, progress or SilentProgress())
    return Bundle(made.root.absolute(), made.manifest)


def _choice(name: str, kind: type[E], value: str | None) -> E | None:
    if value is None:
        return None
    try:
        return kind(value)
    except ValueError as error:
        known = ", ".join(repr(one.value) for one in kind)
        raise UsageError(f"{name} is {value!r}; one of {known} is needed") from error


def _trust(public_key: Path | None) -> Trust:
    return NO_KEY if public_key is None else Trust(key=load_public_key(public_key))
