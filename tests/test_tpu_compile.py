"""The reader of compiled programs; compiling one takes minutes (benchmarks)."""

import re
import types

import jax
import pytest

from benchmarks import tpu_compile
from configs import default
from rasterizer.backends import numba_installed

PROGRAM = """
  %all-reduce.1 = (f32[64]{0:T(256)}, f32[3,3]{1,0:T(8,128)}, f32[], f32[], f32[],
 /*index=5*/bf16[2]{0}) all-reduce(%a, %b), channel_id=1
  %all-reduce.2 = (f32[8]{0}, f32[8]{0}) all-reduce-start(%x), replica_groups={}
  %get = f32[4] get-tuple-element(%all-reduce.1), index=0
  ROOT %g = s32[2,4]{1,0} all-gather(%x)
""".replace(",\n", ",")


def test_collectives_are_found_with_their_sizes():
    assert tpu_compile.collectives(PROGRAM) == [
        {"kind": "all-reduce", "arrays": 6, "bytes": 4 * (64 + 9 + 3) + 2 * 2},
        {"kind": "all-reduce", "arrays": 1, "bytes": 32},
        {"kind": "all-gather", "arrays": 1, "bytes": 32},
    ]


def test_only_sums_of_the_size_of_the_gradients_may_cross():
    row = {"topology": "v5e:2x2", "parameters": 100}
    fine = [{"kind": "all-reduce", "arrays": 3, "bytes": 400 + 64}]
    assert tpu_compile.wrong_crossings(row | {"collectives": fine}) == []
    gathered = [{"kind": "all-gather", "arrays": 1, "bytes": 4}]
    (text,) = tpu_compile.wrong_crossings(row | {"collectives": gathered})
    assert "all-gather" in text
    large = [{"kind": "all-reduce", "arrays": 1, "bytes": 400 + 8192}]
    (text,) = tpu_compile.wrong_crossings(row | {"collectives": large})
    assert "8592 bytes" in text


def _unreadable():
    def as_text():
        raise jax.errors.JaxRuntimeError("INTERNAL: unknown instruction")

    return types.SimpleNamespace(as_text=as_text)


def test_what_jaxlib_cannot_read_is_read_from_the_compilers_own_text(tmp_path):
    program, other = tmp_path / "12-TLP-hlo.txt", tmp_path / "12-vmem_report.html"
    program.write_text(PROGRAM)
    other.write_text("<html>")
    found = tpu_compile.program_text(_unreadable(), {program, other})
    assert found == (PROGRAM, None)


def test_a_program_that_cannot_be_read_is_not_called_right():
    text, why = tpu_compile.program_text(_unreadable(), set())
    assert text is None and why.startswith("INTERNAL: unknown instruction")
    row = {"topology": "v6e:16x16", "collectives": None, "unread": why}
    (said,) = tpu_compile.wrong_crossings(row)
    assert "unknown instruction" in said and "v6e:16x16" in said
    row |= {"images_per_chip": 64, "memory_bytes": {"total": 3e9}, "flops": 1e12}
    row |= {"bytes_accessed": None, "estimated_seconds": None}
    assert "unknown" in tpu_compile.table([row])


def test_other_failures_to_read_a_program_are_not_swallowed():
    def as_text():
        raise MemoryError

    with pytest.raises(MemoryError):
        tpu_compile.program_text(types.SimpleNamespace(as_text=as_text), set())


@pytest.fixture(scope="module")
def traced():
    """The real step, narrow, with its perceptual loss and rasterizer."""
    config = default.get_config()
    config.model.width, config.data.image_size = 16, 32
    config.train.batch_size = 2
    step, args = tpu_compile.abstract_step(config, jax.local_devices()[:1])
    return jax.jit(step).trace(*args)


@pytest.mark.once
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_real_step_lowers_without_the_host_and_sums_only(traced, platform):
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "stablehlo.all_reduce" in text
    crossing = r"stablehlo\.(all_gather|all_to_all|collective_\w+|reduce_scatter)"
    assert not re.findall(crossing, text)
    # Neither callbacks nor the compiled loops that CPUs draw with.
    called = "".join(re.findall(r"custom_call @(\w+)", text))
    assert "callback" not in called and "rasterizer" not in called
    assert "f64" not in text
    if numba_installed():  # what is looked for is what a CPU has
        text_cpu = traced.lower(lowering_platforms=("cpu",)).as_text()
        assert re.search(r"custom_call @rasterizer", text_cpu)
    for outside in ("infeed", "outfeed", "stablehlo.send", "stablehlo.recv"):
        assert outside not in text
