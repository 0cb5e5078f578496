from dataclasses import replace

import pytest

from llama_edge.backends import TARGETS
from llama_edge.core.artifact import KVCacheDtype
from llama_edge.core.errors import UnknownNameError
from llama_edge.core.model_shapes import SHAPES
from llama_edge.plan.devices import DEVICES, Device, get_device
from llama_edge.plan.estimate import Workload, estimate
from llama_edge.plan.workload import bundle_workload, quantized_config
from llama_edge.quantize import W4_HADAMARD, W4A8_RTN

CONFIG = SHAPES["llama-3.2-1b"].config
PHONE = get_device("oneplus-12")


def workload(backend: str = "executorch", context: int = 2048) -> Workload:
    return bundle_workload(CONFIG, W4A8_RTN, backend, KVCacheDtype.FLOAT32, context)


def test_decoding_waits_for_memory() -> None:
    work = workload()
    half = replace(PHONE, transfers_mt_s=PHONE.transfers_mt_s // 2)
    speed = work.decode_tokens_per_s(PHONE, 64)
    assert work.decode_tokens_per_s(half, 64) == pytest.approx(speed / 2)
    # A cache of 16,384 tokens in float32 is as long as a gibibyte, more than all weights.
    assert work.decode_tokens_per_s(PHONE, 16384) < speed / 2


def test_prefill_waits_for_arithmetic_and_long_prompts_for_attention() -> None:
    work = workload()
    slow = replace(PHONE, simd_ghz=PHONE.simd_ghz / 2)
    assert work.first_token_s(slow, 64) == pytest.approx(2 * work.first_token_s(PHONE, 64))
    assert work.first_token_s(PHONE, 2048) > 1.2 * 32 * work.first_token_s(PHONE, 64)
    # One token is not faster than reading the weights.
    assert work.first_token_s(PHONE, 1) == 1 / work.decode_tokens_per_s(PHONE, 0)


def test_without_i8mm_prefill_takes_twice_as_long() -> None:
    older = replace(PHONE, int8_macs=PHONE.int8_macs // 2)
    ratio = workload().first_token_s(older, 64) / workload().first_token_s(PHONE, 64)
    assert 1.9 < ratio < 2


def test_core_ml_is_planned_in_floating_point() -> None:
    assert workload("coreml").int8_macs == 0
    assert workload("coreml").first_token_s(PHONE, 64) > 3 * workload().first_token_s(PHONE, 64)


def test_weight_only_on_onnx_holds_the_head_in_float32() -> None:
    config = quantized_config(CONFIG, W4_HADAMARD)
    work = bundle_workload(config, W4_HADAMARD, "onnx", KVCacheDtype.FLOAT32, 2048)
    assert work.unpacked_bytes == 4 * CONFIG.vocab_size * CONFIG.hidden_size
    assert work.rss_mib(2048) > workload("onnx").rss_mib(2048) + 1000
    ios = bundle_workload(config, W4_HADAMARD, "coreml", KVCacheDtype.FLOAT16, 2048)
    assert ios.size.streamed_bytes < work.size.streamed_bytes


def test_a_cache_too_long_does_not_fit() -> None:
    assert estimate(workload(), get_device("galaxy-s22"), 2048, 64).fits
    found = estimate(workload(context=131072), get_device("galaxy-s22"), 131072, 64)
    assert not found.fits
    assert found.kv_cache_mib == 8192
    assert found.decode_at_context_tokens_per_s < found.decode_tokens_per_s


@pytest.mark.parametrize("device", DEVICES.values(), ids=lambda device: device.name)
def test_a_device_says_where_its_figures_come_from(device: Device) -> None:
    assert device.source.startswith("https://")
    assert device.memory_source.startswith("https://")
    assert set(device.targets) <= set(TARGETS)
    assert device.memory.endswith(f"-{device.transfers_mt_s}")
    assert 10 < device.bandwidth_gb_s < 100
    assert device.float_gmacs < device.int8_gmacs


def test_an_unknown_device_is_told_with_those_that_are_known() -> None:
    with pytest.raises(UnknownNameError, match=r"'nokia-3310' is unknown.*oneplus-12"):
        get_device("nokia-3310")
