"""The table of models, compared with Meta's own list and with what is built in."""

import re

import pytest

from llama_edge.checkpoints import BUILTIN_MODELS
from llama_edge.checkpoints.hub import is_hub_id
from llama_edge.checkpoints.known_models import (
    APACHE,
    KNOWN_MODELS,
    LLAMA_32,
    KnownModel,
    get_known_model,
)
from llama_edge.core.errors import UnknownNameError
from llama_edge.core.model_shapes import SHAPES

LLAMAS = [row for row in KNOWN_MODELS.values() if row.id.startswith("meta-llama/")]


def test_metas_own_list_has_these_ids_and_sizes() -> None:
    from llama_models.sku_list import all_registered_models

    published = {model.huggingface_repo: model for model in all_registered_models()}
    wanted = {
        name
        for name in published
        if name is not None and re.search(r"Llama-3\.2-[13]B|Guard-3-1B", name)
    }
    assert {row.id for row in LLAMAS} == wanted
    for row in LLAMAS:
        sizes = published[row.id].arch_args
        assert row.shape.startswith(f"{sizes['n_layers']} layers of {sizes['dim']}")


@pytest.mark.parametrize("row", LLAMAS, ids=lambda row: row.name)
def test_stop_tokens_are_tokens_of_metas(row: KnownModel) -> None:
    from llama_models.llama3.tokenizer import Tokenizer

    known = Tokenizer.get_instance().special_tokens
    assert set(row.stop_tokens) <= set(known)


def test_rows_are_complete() -> None:
    for name, row in KNOWN_MODELS.items():
        assert name == row.name
        assert is_hub_id(row.id)
        assert all((row.shape, row.template, row.stop_tokens, row.verified))
        assert row.licence is (LLAMA_32 if row in LLAMAS else APACHE)
    assert {model.published for model in BUILTIN_MODELS.values()} <= {
        row.id for row in KNOWN_MODELS.values()
    }
    for shape in SHAPES.values():
        assert shape.source.removeprefix("https://huggingface.co/") in {
            row.id for row in KNOWN_MODELS.values()
        }


def test_a_row_by_name_or_id() -> None:
    row = get_known_model("meta-llama/llama-guard-3-1b")
    assert row is get_known_model("Llama-Guard-3-1B")
    with pytest.raises(UnknownNameError, match=r"no row of the table.*llama-3\.2-1b"):
        get_known_model("llama-9")
