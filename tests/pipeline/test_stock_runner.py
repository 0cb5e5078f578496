"""ExecuTorch's own text runner, which its demo apps use, opens what we write."""

import json
import subprocess
import sys
from typing import Final

from llama_edge.bundle.folder import Bundle
from llama_edge.generate.assistant import AnswerConfig
from llama_edge.generate.run import PromptRequest, Run
from llama_edge.text.text_assets import read_text_assets
from llama_edge.text.tokenizer import Tokenizer

QUESTION: Final = "What is the capital of France?"
TOKENS: Final = 12
#: In a process of its own: the runner writes its log where it likes.
STOCK: Final = """
import json, sys
# Operators of its own that are no part of its core: apps link them in.
import executorch.extension.llm.custom_ops.custom_ops
import executorch.kernels.quantized
from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner

model, tokenizer, prompt, tokens = sys.argv[1:]
config = GenerationConfig()
config.echo, config.temperature, config.max_new_tokens = False, 0.0, int(tokens)
config.num_bos = config.num_eos = 0
pieces = []
TextLLMRunner(model, tokenizer).generate(prompt, config, pieces.append)
print(json.dumps("".join(pieces)))
"""


def test_the_stock_runner_gives_our_answer(android_bundle: Bundle) -> None:
    asked = PromptRequest(prompt=QUESTION, config=AnswerConfig(max_new_tokens=TOKENS))
    ours = "".join(Run(android_bundle.root, asked))
    tokenizer = Tokenizer(read_text_assets(android_bundle.root))
    prompt = tokenizer.render_chat([{"role": "user", "content": QUESTION}])
    arguments = [android_bundle.root / "model.pte", android_bundle.root / "tokenizer.json"]
    command = [sys.executable, "-c", STOCK, *map(str, arguments), prompt, str(TOKENS)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "Paris" in ours
    assert json.loads(output.splitlines()[-1]).startswith(ours)
