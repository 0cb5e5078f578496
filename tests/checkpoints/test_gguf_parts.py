"""Split models. The `gguf` package writes them, and reads them as a second opinion."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFValueType as Type
from torch import Tensor

from llama_edge.checkpoints import load_checkpoint, load_config
from llama_edge.checkpoints.gguf import canonical_name
from llama_edge.checkpoints.gguf_file import GgufFile
from llama_edge.checkpoints.gguf_parts import open_gguf
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import CheckpointError
from llama_edge.models.weight_names import EMBEDDING, LM_HEAD
from llama_edge.quantize.stage import hash_weights
from tests.checkpoint_writers import random_weights, write_gguf
from tests.checkpoints.test_gguf import CONFIG

#: A value of a metadata entry and its type; None removes the entry.
Entry = tuple[object, Type] | None
COUNT, NUMBER, TENSORS = "split.count", "split.no", "split.tensors.count"


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Untied; the head is the last of them."""
    tied = random_weights(CONFIG)
    return {**tied, LM_HEAD: tied[EMBEDDING] * 2}


Writer = Callable[[int], list[Path]]


@pytest.fixture
def write(weights: dict[str, Tensor], debug_checkpoint: Checkpoint, tmp_path: Path) -> Writer:
    """Writes model.gguf as so many parts; the RoPE factors are one more tensor."""

    def parts(number: int) -> list[Path]:
        tensors = len(weights) + 1
        size = 0 if number == 1 else tensors - 1 if number == 2 else -(-tensors // number)
        text = debug_checkpoint.text
        path = tmp_path / "model.gguf"
        write_gguf(path, CONFIG, weights, text, Kind.F32, pre="smollm", part_tensors=size)
        if number == 1:
            return [path]
        return [tmp_path / f"model-{n + 1:05}-of-{number:05}.gguf" for n in range(number)]

    return parts


@pytest.fixture
def pair(write: Writer) -> list[Path]:
    """Two parts; the second holds only the head, so that the first looks like a tied model."""
    return write(2)


def rewrite(
    path: Path, changes: Mapping[str, Entry], more: Mapping[str, np.ndarray] | None = None
) -> None:
    """Write a file anew with other metadata entries, and with more tensors."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(path.with_suffix(".new"), "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in changes:
            sub_type = field.types[-1] if field.types[0] is Type.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type)
    for name, entry in changes.items():
        if entry is not None:
            writer.add_key_value(name, *entry)
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    for name, values in {**tensors, **(more or {})}.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".new").replace(path)


def refused(path: Path, *messages: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(str(path))
    for message in messages:
        assert message in str(caught.value)


@pytest.mark.parametrize("number", [2, 3, 6])
def test_parts_are_one_model(write: Writer, weights: dict[str, Tensor], number: int) -> None:
    whole = load_checkpoint(str(write(1)[0]))
    for path in write(number):  # any part may be named
        checkpoint = load_checkpoint(str(path))
        assert checkpoint.config == whole.config == load_config(str(path))
        assert not checkpoint.config.tie_word_embeddings
        assert checkpoint.text == whole.text
        assert hash_weights(checkpoint.weights) == hash_weights(whole.weights)
        for name, weight in weights.items():
            assert torch.equal(checkpoint.weights.read(name), weight.float()), name


def test_values_as_the_gguf_package_reads_them(pair: list[Path]) -> None:
    read = load_checkpoint(str(pair[0])).weights
    compared = set()
    for path in pair:
        for tensor in gguf.GGUFReader(path).tensors:
            name = canonical_name(tensor.name)
            if name in list(read) and not name.endswith(("q_proj.weight", "k_proj.weight")):
                assert np.array_equal(read.read(name).numpy(), tensor.data), name
                compared.add(name)
    assert {EMBEDDING, LM_HEAD} <= compared


def test_the_first_part_may_hold_metadata_alone(
    write: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `llama-gguf-split --no-tensor-first-split` writes it."""
    expected = hash_weights(load_checkpoint(str(write(1)[0])).weights)
    small_first = partial(gguf.GGUFWriter, small_first_shard=True)
    monkeypatch.setattr(gguf, "GGUFWriter", small_first)
    paths = write(2)
    assert not GgufFile(paths[0].with_name("model-00001-of-00003.gguf")).tensors
    for number in (1, 2, 3):
        path = paths[0].with_name(f"model-0000{number}-of-00003.gguf")
        assert hash_weights(load_checkpoint(str(path)).weights) == expected


def test_parts_through_links_as_in_the_hub_s_cache(pair: list[Path], tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    for number, path in enumerate(pair):
        path.rename(tmp_path / "blobs" / str(number))
        path.symlink_to(tmp_path / "blobs" / str(number))
    assert LM_HEAD in list(load_checkpoint(str(pair[0])).weights)


@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_part(pair: list[Path], missing: int) -> None:
    pair[missing].unlink()
    message = f"{pair[missing]}: part {missing + 1} of 2 is missing"
    refused(pair[1 - missing], message, f"llama-gguf-split --merge {pair[0].name}")


def test_a_part_that_is_no_file(pair: list[Path]) -> None:
    """A FIFO would be waited for."""
    pair[1].unlink()
    os.mkfifo(pair[1])
    refused(pair[0], f"{pair[1]}: part 2 of 2 is not a regular file")


def test_a_damaged_part(pair: list[Path]) -> None:
    pair[1].write_bytes(pair[1].read_bytes()[:-64])
    refused(pair[0], f"{pair[1]}: output.weight claims bytes")


@pytest.mark.parametrize("name", ["model.gguf", "model-1-of-2.gguf", "-00001-of-00002.gguf"])
def test_a_renamed_part(pair: list[Path], name: str) -> None:
    renamed = pair[0].rename(pair[0].with_name(name))
    refused(renamed, f"{renamed}: is one of 2 parts", "NAME-00001-of-00002.gguf")


@pytest.mark.parametrize("name", ["x-00001-of-00003.gguf", "x-00000-of-00002.gguf"])
def test_a_name_of_another_part(pair: list[Path], name: str) -> None:
    renamed = pair[0].rename(pair[0].with_name(name))
    refused(renamed, f"{renamed}: split.count is 2, but by its name it is part")


@pytest.mark.parametrize("named", [0, 1])
def test_exchanged_names(pair: list[Path], named: int) -> None:
    pair[0].rename(pair[0].with_suffix(".new"))
    pair[1].rename(pair[0])
    pair[0].with_suffix(".new").rename(pair[1])
    refused(pair[named], f"{pair[named]}: split.no is {1 - named}", f"it must be {named}")


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        (1, {NUMBER: (0, Type.UINT16)}, "split.no is 0; as part 2 of 2 it must be 1"),
        (1, {NUMBER: None}, "split.no is None; an integer is needed"),
        (1, {COUNT: (3, Type.UINT16)}, "split.count is 3; as part 2 of 2 it must be 2"),
        (1, {COUNT: None}, "split.count is None; an integer is needed"),
        (1, {TENSORS: (20, Type.INT32)}, "split.tensors.count is 20, but"),
        (1, {TENSORS: (22.0, Type.FLOAT32)}, "split.tensors.count is 22.0; an integer"),
        (0, {TENSORS: (-1, Type.INT32)}, "split.tensors.count is -1, but"),
        (0, {TENSORS: (True, Type.BOOL)}, "split.tensors.count is True; an integer"),
        (0, {NUMBER: None}, "split.no is None; an integer is needed"),
        (0, {NUMBER: (1, Type.UINT16)}, "split.no is 1; as part 1 of 2 it must be 0"),
        (0, {NUMBER: (65535, Type.UINT16)}, "split.no is 65535"),
        (0, {COUNT: (-1, Type.INT16)}, "split.count is -1; 0 to 65535"),
        (0, {COUNT: (65536, Type.UINT32)}, "split.count is 65536; 0 to 65535"),
        (0, {COUNT: (100000, Type.UINT64)}, "split.count is 100000; 0 to 65535"),
        (0, {COUNT: (2**63, Type.UINT64)}, f"split.count is {2**63}; 0 to 65535"),
        (0, {COUNT: (2.0, Type.FLOAT32)}, "split.count is 2.0; an integer is needed"),
        (0, {COUNT: (True, Type.BOOL)}, "split.count is True; an integer is needed"),
        (0, {COUNT: ("2", Type.STRING)}, "split.count is '2'; an integer is needed"),
        (1, {COUNT: (1, Type.UINT16)}, "split.count is 1; as part 2 of 2 it must be 2"),
    ],
)
def test_metadata_that_contradict_the_names(
    pair: list[Path], part: int, changes: Mapping[str, Entry], message: str
) -> None:
    rewrite(pair[part], changes)
    refused(pair[0], f"{pair[part]}: {message}")


def test_the_largest_count_ends_at_the_first_missing_part(pair: list[Path]) -> None:
    rewrite(pair[0], {COUNT: (65535, Type.UINT16)})
    first = pair[0].rename(pair[0].with_name("model-00001-of-65535.gguf"))
    refused(first, "model-00002-of-65535.gguf: part 2 of 65535 is missing")


def test_a_tensor_in_two_parts(pair: list[Path], weights: dict[str, Tensor]) -> None:
    norm = weights["model.norm.weight"].float().numpy()
    rewrite(pair[1], {TENSORS: (len(weights) + 2, Type.INT32)}, {"output_norm.weight": norm})
    rewrite(pair[0], {TENSORS: (len(weights) + 2, Type.INT32)})
    refused(pair[0], f"{pair[1]}: output_norm.weight is in {pair[0].name} as well")


@pytest.mark.parametrize("count", [None, (0, Type.UINT16), (1, Type.UINT16)])
def test_a_file_of_its_own(write: Writer, count: Entry) -> None:
    """What `--merge` leaves: a count of 0. A name that looks like a part's is only a name."""
    path = write(1)[0].rename(write(1)[0].with_name("model-00001-of-00002.gguf"))
    if count is not None:
        total = (len(GgufFile(path).tensors), Type.INT32)
        rewrite(path, {COUNT: count, NUMBER: (0, Type.UINT16), TENSORS: total})
    assert LM_HEAD in list(load_checkpoint(str(path)).weights)


@pytest.mark.parametrize("count", [None, (0, Type.UINT16), (1, Type.UINT16)])
@pytest.mark.parametrize("changes", [{NUMBER: (1, Type.UINT16)}, {NUMBER: (0, Type.UINT16)}])
def test_a_part_that_says_it_is_the_only_one(
    pair: list[Path], count: Entry, changes: Mapping[str, Entry]
) -> None:
    """Its number or the number of tensors gives it away."""
    rewrite(pair[0], {COUNT: count, **changes})
    refused(pair[0], f"{pair[0]}: split.")


def test_a_model_holds_the_attributes_of_a_file(write: Writer) -> None:
    path = write(1)[0]
    file, model = GgufFile(path), open_gguf(path)
    assert (model.path, model.metadata, model.tensors) == (path, file.metadata, file.tensors)
    name = "output.weight"
    assert np.array_equal(model.raw(name), file.raw(name))
    assert torch.equal(model.read(name), file.read(name))
