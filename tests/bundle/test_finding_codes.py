import re

import pytest

from llama_edge.bundle.finding_codes import ContractFinding, finding_codes


def test_every_code_is_dotted_and_every_sentence_is_one_without_placeholders() -> None:
    codes = finding_codes()
    assert len(codes) > 40
    for code, entry in codes.items():
        assert re.fullmatch(r"[a-z]+\.[a-z0-9_]+", code), code
        for sentence in (entry.what, entry.remedy):
            assert sentence.endswith("."), code
            assert not set("{}%<>") & set(sentence), code
    assert len({entry.what for entry in codes.values()}) == len(codes)


def test_a_finding_speaks_with_the_catalogs_words() -> None:
    finding = ContractFinding(
        code="files.size", where="model.onnx.data", expected="120 bytes", found="119 bytes"
    )
    assert finding.message.startswith("model.onnx.data: A file has another size")
    assert "Expected 120 bytes; found 119 bytes." in finding.message
    assert finding.to_json()["remedy"] == finding_codes()["files.size"].remedy


def test_a_code_that_is_not_in_the_catalog_is_a_defect_of_ours() -> None:
    with pytest.raises(AssertionError, match=r"files\.colour"):
        ContractFinding(code="files.colour", where="x", expected="a", found="b")
