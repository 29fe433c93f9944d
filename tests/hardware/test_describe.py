"""Protects: descriptions of machines mean what they say, and nonsense is refused in one sentence with a remedy."""

import pytest

from tuneserve.errors import HardwareError
from tuneserve.hardware import describe_machine, gpus


@pytest.mark.parametrize(
    ("text", "name", "machines", "count"),
    [
        ("rtx4090", "RTX-4090-24GB", 1, 1),
        ("RTX 4090", "RTX-4090-24GB", 1, 1),
        ("2xH100-80GB", "2xH100-80GB", 1, 2),
        ("2xh100", "2xH100-80GB", 1, 2),
        ("2x8xH100-80GB", "2x8xH100-80GB", 2, 8),
        ("3x1xL4", "3x1xL4-24GB", 3, 1),
        ("a10g", "A10G-24GB", 1, 1),
    ],
)
def test_gpus_are_counted_and_named(text: str, name: str, machines: int, count: int) -> None:
    machine = describe_machine(text)
    assert (machine.kind, machine.name, machine.count, len(machine.gpus)) == ("nvidia", name, machines, count)
    assert len(set(machine.gpus)) == 1
    assert describe_machine(machine.name) == machine


def test_a_processor_is_described_by_cores_memory_and_bandwidth() -> None:
    machine = describe_machine("cpu-16c-64GB-200GBps")
    assert (machine.kind, machine.cores, machine.memory, machine.bandwidth) == ("cpu", 16, 64 * 10**9, 200e9)
    assert not machine.notes
    assert "76.8 GB/s" in describe_machine("cpu-16c-64GB").notes[0]


def test_a_mac_has_one_memory_for_all() -> None:
    machine = describe_machine("mac-m4-max-128GB")
    assert (machine.kind, machine.gpus[0].name, machine.gpus[0].capability) == ("mac", "M4-Max", None)
    assert machine.memory == machine.gpus[0].memory == 128 * 10**9
    assert describe_machine("mac-m4-64GB").bandwidth == 120e9


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("h1000", "H100-80GB"),
        ("rtx4091", "RTX-4090-24GB"),
        ("mac-m9-64GB", "mac-m4-64GB"),
        ("mac-m4", "write it as mac-m4-64GB"),
        ("", "nearest names"),
        ("-1xH100", "H100-80GB"),
        ("9999999xH100", "outside 1 to 16"),
        ("0xH100", "outside 1 to 16"),
        ("9999x8xH100", "outside 1 to 1024"),
        ("9" * 5000 + "xH100", "nearest names"),
        ("9" * 50 + "xH100", "outside 1 to 16"),
        ("cpu-0c-64GB", "outside 1"),
        ("cpu-4c-99999999999GB", "outside 1"),
        ("mac-m4-0GB", "outside 1"),
        ("mi300x", "an AMD GPU"),
        ("8xMI300X", "an AMD GPU"),
        ("rocm", "an AMD GPU"),
        ("rx7900xtx", "an AMD GPU"),
        ("gaudi3", "an Intel GPU"),
        ("tpu-v5e", "a TPU"),
        ("inferentia", "an AWS accelerator"),
        ("\u0664xH100", "nearest names"),
        ("\x00", "nearest names"),
    ],
)
def test_what_does_not_exist_or_is_not_planned_for_is_refused(text: str, said: str) -> None:
    with pytest.raises(HardwareError) as error:
        describe_machine(text)
    message = str(error.value)
    assert said in message
    assert message.endswith(".") and len(message) < 400


def test_every_gpu_of_the_table_can_be_named() -> None:
    assert len(gpus()) >= 35
    for gpu in gpus():
        assert describe_machine(gpu.name).gpus == (gpu,)
        assert gpu.bandwidth is not None and 100e9 < gpu.bandwidth < 10e12
        assert gpu.capability is not None and (7, 0) <= gpu.capability <= (13, 0)
        # A name ends in the memory that the row has.
        assert gpu.name.endswith(f"-{gpu.memory // 10**9}GB")
