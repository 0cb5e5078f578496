"""lm-eval's tasks over any session: https://github.com/EleutherAI/lm-evaluation-harness.

A task is a YAML file with its data on this machine. lm-eval builds the prompts and the scores; what
is asked of a model (`lm_eval.api.model.LM`) is answered here.
"""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from llama_edge.core.errors import LlamaEdgeError, TextError
from llama_edge.core.progress import Progress
from llama_edge.core.session import Session
from llama_edge.core.text_assets import TextAssets
from llama_edge.evaluate.report import TaskScore
from llama_edge.evaluate.task_files import read_task
from llama_edge.evaluate.windows import PIECE, SEED
from llama_edge.gate.metrics import negative_log_likelihood
from llama_edge.text.generate import DEFAULT_MAX_NEW_TOKENS, Generation, SamplingConfig
from llama_edge.text.tokenizer import Tokenizer, TokenStream


class SessionLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """What lm-eval calls a model: a session with its tokenizer."""

    def __init__(self, session: Session, text: TextAssets, progress: Progress) -> None:
        super().__init__()
        self._session = session
        self._text = text
        self._tokenizer = Tokenizer(text)
        self._progress = progress

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._text.eos_token_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context."""
        bos = self._text.bos_token_id
        return self.eot_token_id if bos is None else bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """Token ids; by default with BOS where the model wants it."""
        return self._tokenizer.encode(string, add_bos=add_special_tokens)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether it is the greedy one."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm)
        return found

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = True,
    ) -> list[tuple[float, bool]]:
        del disable_tqdm
        self._progress.start("lm-eval: likelihoods", len(requests))
        found = []
        for _, context, continuation in requests:
            found.append(self._score(context, continuation))
            self._progress.advance()
        return found

    def _score(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        """A context that is too long loses its beginning."""
        tokens = [*context, *continuation][-(self._session.max_context + 1) :]
        first = max(1, len(tokens) - len(continuation))
        self._session.reset()
        if first > 1:
            self._session.prefill(tokens[: first - 1])
        total, greedy = 0.0, True
        for start in range(first, len(tokens), PIECE):
            targets = tokens[start : start + PIECE]
            logits_TV = self._session.prefill_logits(tokens[start - 1 : start - 1 + len(targets)])
            total -= float(negative_log_likelihood(logits_TV, targets).sum())
            greedy = greedy and bool((logits_TV.argmax(-1) == np.array(targets)).all())
        return total, greedy

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """Log-probability of each whole text, in windows as long as the context."""
        del disable_tqdm
        self._progress.start("lm-eval: texts", len(requests))
        found = []
        for request in requests:
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
            windows = get_rolling_token_windows(
                tokens, self.prefix_token_id, self._session.max_context, context_len=1
            )
            pairs = map(make_disjoint_window, windows)
            found.append(sum(self._score(context, predicted)[0] for context, predicted in pairs))
            self._progress.advance()
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The model's own continuation of each context, up to a stop string."""
        del disable_tqdm
        self._progress.start("lm-eval: answers", len(requests))
        found = []
        for request in requests:
            context, options = request.args
            found.append(self._generate(context, normalize_gen_kwargs(options)))
            self._progress.advance()
        return found

    def _generate(self, context: str, options: Mapping[str, Any]) -> str:
        wanted = options.get("max_gen_toks", DEFAULT_MAX_NEW_TOKENS)
        room = self._session.max_context - wanted
        if room < 1:
            raise TextError(
                f"the task asks for {wanted} new tokens and the context holds "
                f"{self._session.max_context}; lower max_gen_toks"
            )
        sampling = SamplingConfig(
            temperature=options.get("temperature", 0.0),
            top_p=options.get("top_p", 1.0),
            top_k=options.get("top_k", 0),
            seed=SEED,
        )
        self._session.reset()
        generation = Generation(
            self._session,
            self.tok_encode(context)[-room:],
            eos_token_ids=self._text.eos_token_ids,
            max_new_tokens=wanted,
            sampling=sampling,
        )
        return _until(generation, TokenStream(self._tokenizer), options["until"])


def _until(tokens: Iterable[int], stream: TokenStream, stops: Sequence[str]) -> str:
    """The text before the first of `stops`."""
    text = ""
    for token in tokens:
        text += stream.push(token)
        places = [text.index(stop) for stop in stops if stop and stop in text]
        if places:
            return text[: min(places)]
    return text + stream.flush()


def run_tasks(
    session: Session, text: TextAssets, paths: Sequence[Path], progress: Progress
) -> tuple[TaskScore, ...]:
    """Every task through the session.

    A task file is code: it may name Python functions that are next to it, which are run.

    Raises:
        TextError: A file is no task with local data, or lm-eval fails on it.
        SessionError: The runtime refuses an input.
    """
    model = SessionLM(session, text, progress)
    scores: list[TaskScore] = []
    for path in paths:
        try:
            scores += _run_task(model, path)
        except LlamaEdgeError:
            raise
        except (Exception, SystemExit) as error:  # a task's own functions raise what they like
            raise TextError(
                f"{path}: not a task that lm-eval can run: {type(error).__name__}: {error}"
            ) from error
    return tuple(scores)


def _run_task(model: SessionLM, path: Path) -> list[TaskScore]:
    config = read_task(path)
    with tempfile.TemporaryDirectory() as cache:
        config["dataset_kwargs"]["cache_dir"] = cache
        results = simple_evaluate(
            model,
            tasks=[config],
            task_manager=TaskManager(include_defaults=False),
            log_samples=False,
            bootstrap_iters=1000,
        )
    name = config["task"]
    found = results["results"][name]
    return [
        TaskScore(
            task=name,
            metric=metric,
            value=float(value),
            standard_error=_number(found.get(f"{key}_stderr,{kind}")),
            samples=results["n-samples"][name]["effective"],
        )
        for metric, value in found.items()
        if "," in metric
        for key, kind in [metric.split(",", 1)]
        if not key.endswith("_stderr")
    ]


def _number(value: object) -> float | None:
    """lm-eval writes "N/A" where there is no standard error."""
    return float(value) if isinstance(value, (int, float)) else None
