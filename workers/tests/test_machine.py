"""What a machine lacks, its engines are told to do without."""

import pytest

from workers import machine


def test_engines_compile_nothing_on_a_processor_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    on_processor = machine.gpu_count() == 0
    for compiler, is_there in (("/not/there/g++", False), ("sh", True)):
        monkeypatch.setenv("CXX", compiler)
        machine.engine_arguments.cache_clear()
        assert ("--enforce-eager" in machine.engine_arguments()) == (on_processor and not is_there)
    monkeypatch.undo()
    machine.engine_arguments.cache_clear()
