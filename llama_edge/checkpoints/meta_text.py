"""The tokenizer of a Meta folder: tiktoken ranks since Llama 3, SentencePiece before."""

from pathlib import Path

from llama_edge.checkpoints.tiktoken import MAX_FILE_BYTES, is_tiktoken, read_tiktoken
from llama_edge.core.errors import TokenizerError
from llama_edge.core.regular import read_regular
from llama_edge.core.text_assets import TextAssets
from llama_edge.text.native import Changes, open_tokenizer
from llama_edge.text.sentencepiece import read_sentencepiece, sentencepiece_json
from llama_edge.text.text_assets import build_text_assets


def read_meta_text(path: Path) -> TextAssets:
    """Tokenizer and dialog format; a model of before Llama 3 has no dialog format of its own.

    Args:
        path: `tokenizer.model`.

    Raises:
        TokenizerError: The file is absent, damaged or of another kind.
    """
    data = read_regular(path, MAX_FILE_BYTES, TokenizerError)
    if is_tiktoken(data):
        return read_tiktoken(path)
    pieces = read_sentencepiece(data, str(path))
    named = {
        name: pieces.tokens[number]
        for name, number in (("bos_token", pieces.begin), ("eos_token", pieces.end))
        if number is not None
    }
    # Meta's programs put BOS in front of every prompt.
    begin = (named["bos_token"],) if "bos_token" in named else ()
    changes = Changes(begin=begin, canonical=True)
    return build_text_assets(
        open_tokenizer(str(path), sentencepiece_json(pieces, str(path)), changes),
        None,
        named=named,
        ends=() if pieces.end is None else (pieces.end,),
    )
