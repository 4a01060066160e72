"""What a machine lacks, its engines are told to do without."""

import pytest

from workers import machine


def test_engines_compile_nothing_on_a_processor_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    on_processor = machine.gpu_count() == 0
    for compiler, is_there in (("/not/there/g++", False), ("sh", True)):
        monkeypatch.setenv("CXX", compiler)
        assert ("--enforce-eager" in machine.engine_arguments()) == (on_processor and not is_there)


def test_an_engine_on_a_processor_takes_no_more_memory_than_is_free() -> None:
    words = machine.engine_arguments().split()
    if machine.gpu_count() == 0:
        share = float(words[words.index("--gpu-memory-utilization") + 1])
        assert 0 < share <= max(0.1, machine.free_memory())
    else:
        assert words == []
