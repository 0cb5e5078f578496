"""A bundle that can answer: its files checked, its runtime chosen, its text side read."""

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from llama_edge.backends import get_exporter
from llama_edge.bundle.folder import open_bundle
from llama_edge.bundle.manifest import Manifest, Verdict
from llama_edge.bundle.prompt_state import PromptState, read_prompt_state, why_unusable
from llama_edge.bundle.session import open_session
from llama_edge.bundle.signing import NO_KEY, Trust
from llama_edge.core.model_config import ModelConfig
from llama_edge.core.session import Session
from llama_edge.runtimes import choose_runtime
from llama_edge.text.chat_template import REFERENCE_DATE
from llama_edge.text.generate import Constraint
from llama_edge.text.grammar import Grammar, constraint_for
from llama_edge.text.kept_cache import StoredBeginning
from llama_edge.text.text_assets import read_text_assets
from llama_edge.text.tokenizer import Tokenizer
from llama_edge.text.tool_form import ToolForm
from llama_edge.text.tools import Tool


class BundleModel:
    """A checked bundle with a runtime of its backend, which runs in a child process.

    Args:
        folder: The bundle.
        runtime: None takes the one that the gate uses.
        trust: Whose signature the bundle must have.

    Raises:
        ArtifactError: Not a bundle, or an unsafe one.
        CheckFailedError: A file is not what the manifest says, or not listed there; or the
            signature is not the one that `trust` demands; or its prompt state is another model's.
        UsageError: The runtime is another backend's.
    """

    def __init__(self, folder: Path, runtime: str | None = None, trust: Trust = NO_KEY) -> None:
        self._bundle = open_bundle(folder, trust)
        self._artifact = get_exporter(self.manifest.backend).open(folder).artifact
        self._runtime = choose_runtime(self._artifact.backend, runtime)
        self.text = read_text_assets(folder)
        self.tokenizer = Tokenizer(self.text)
        #: why the bundle's prompt state is not used; None: it is, or there is none
        self.state_note: str | None = None
        self._state = self._usable_state()

    def _usable_state(self) -> PromptState | None:
        state = read_prompt_state(self._bundle.root, self.manifest, self._artifact)
        if state is None:
            return None
        reason = why_unusable(state, self._runtime, self._artifact.backend)
        if reason is not None:
            self.state_note = f"the bundle's prompt state is not used: {reason}"
            return None
        return state

    @property
    def beginning(self) -> StoredBeginning | None:
        """What need not be read; None: the bundle has no prompt state for this runtime."""
        if self._state is None:
            return None
        return StoredBeginning(self._state.tokens, self._state.cache)

    def day_of(self, system: str | None) -> date | None:
        """The day that belongs to a system prompt; None: whatever day it is.

        Where the chat template writes the current day, a state is of one day, and its system
        prompt keeps it.
        """
        if self._state is None or self._state.origin.system != system:
            return None
        return self._state.origin.day

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self._bundle.manifest

    @property
    def failed_gate(self) -> bool:
        """Whether the bundle was kept although its gate had failed."""
        return self.manifest.verdict is Verdict.FAILED

    @property
    def config(self) -> ModelConfig:
        """The network's shape."""
        return self._artifact.config

    @property
    def max_context(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self._artifact.max_context

    @property
    def tool_form(self) -> ToolForm:
        """How the model is told of tools, and how it calls them.

        Raises:
            TokenizerError: There is no chat template, or it renders no dialog.
        """
        return self.manifest.tools or self.tokenizer.tool_form

    def encode_dialog(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Tool] = (),
        today: date = REFERENCE_DATE,
    ) -> list[int]:
        """Tokens of a dialog in OpenAI's form, calls and results of tools included.

        Raises:
            TokenizerError: There is no chat template, or it refuses the dialog.
            UsageError: A message has calls that are none.
        """
        if not tools and not any(m.get("tool_calls") or m.get("role") == "tool" for m in messages):
            return self.tokenizer.encode_chat(messages, today=today)
        given, shown = self.tool_form.dialog(messages, tools)
        return self.tokenizer.encode_chat(given, tools=shown, today=today)

    def constraint_for(self, grammar: Grammar) -> Constraint:
        """Follow a grammar through one answer.

        Raises:
            UsageError: The grammar is wrong, too large, or asks for what cannot be kept.
            TokenizerError: The bytes of the tokenizer's tokens are not known.
        """
        size = self.manifest.model.config.vocab_size
        return constraint_for(grammar, self.tokenizer, self.text.eos_token_ids, size)

    def open(self) -> Session:
        """Load the artifact.

        Raises:
            ContractCheckError: A file was changed between its check and now.
            SessionError: The runtime refuses the artifact.
            RuntimeCrashError: It died or hung.
        """
        return open_session(self._bundle, self._artifact, self._runtime)
