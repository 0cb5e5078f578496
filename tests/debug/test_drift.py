import pytest
import torch

from llama_edge.core.quantized import QuantizedCheckpoint
from llama_edge.debug.drift import residual_streams, stream_snr_db
from llama_edge.models.reference import KVCache, Reference
from llama_edge.models.sources import CachedSource, DequantizedSource


def test_streams_are_the_models_own(debug_quantized: QuantizedCheckpoint) -> None:
    model = Reference(
        debug_quantized.config, CachedSource(DequantizedSource(debug_quantized.weights))
    )
    with torch.no_grad():
        streams = [*residual_streams(model, [3, 40, 41, 42])]
        expected = model.hidden(model.embed(torch.tensor([3, 40, 41, 42])), KVCache())
    assert len(streams) == debug_quantized.config.num_hidden_layers + 1
    torch.testing.assert_close(streams[-1], expected)


def test_a_rotation_is_taken_out_and_noise_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    stream = torch.randn(200, 24, generator=generator)
    rotation, _ = torch.linalg.qr(torch.randn(24, 24, generator=generator))
    turned = stream @ rotation
    assert stream_snr_db(turned, stream, aligned=False) < 3
    assert stream_snr_db(turned, stream, aligned=True) > 100
    noisy = turned + 0.1 * torch.randn(200, 24, generator=generator)
    assert stream_snr_db(noisy, stream, aligned=True) == pytest.approx(20, abs=1.5)


def test_every_token_counts_the_same() -> None:
    """One token a thousand times longer than the others hides nothing."""
    stream = torch.ones(10, 8)
    stream[0] *= 1000
    other = stream.clone()
    other[1:] = -other[1:]
    assert stream_snr_db(other, stream, aligned=False) < 0
