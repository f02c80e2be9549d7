"""What a person sees of a run while it trains: in a terminal, and in a log file."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from infini_jax.cli.progress import live_line, train_progress
from infini_jax.config import Budget, RunConfig, TrainConfig
from infini_jax.devices.peaks import PEAK_FLOPS, peak_flops

RUN = RunConfig(name="mine", train=TrainConfig(batch=2, sequence=64), budget=Budget("steps", 1000))
LINE = {
    "step": 250,
    "tokens": 32_000,
    "seconds": 40.0,
    "tokens_per_second": 800.0,
    "recent_tokens_per_second": 1600.0,
    "loss": 2.34567,
    "accuracy": 0.25,
    "gradient_norm": 1.0,
}
GATES = {"gate_mean": 0.51, "gate_spread": 0.125}


def shown(terminal: bool, *lines) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=200, color_system=None)
    with train_progress(RUN, Path("not-read"), console) as watch:
        for line in lines:
            watch(line)
    return file.getvalue()


def test_a_line_has_loss_speeds_and_the_time_that_is_left_at_the_recent_speed():
    """750 steps of 128 tokens are 96 000 tokens: a minute at 1600 a second."""
    assert live_line(LINE, 1000) == "loss 2.346, 0:01:00 left, 1,600 tokens/s (800 overall)"


def test_a_line_has_mfu_and_gates_where_there_are_some():
    text = live_line({**LINE, **GATES, "mfu": 0.4123}, 1000)
    assert text == "loss 2.346, 0:01:00 left, 1,600 tokens/s (800 overall), MFU 41.2 %, gates 0.51 over 0.12"


def test_a_log_file_gets_one_plain_line_for_each_metric_line():
    text = shown(False, LINE, {**LINE, "step": 500, "tokens": 64_000})
    assert text.splitlines() == [
        "mine: step 250/1,000, loss 2.346, 0:01:00 left, 1,600 tokens/s (800 overall)",
        "mine: step 500/1,000, loss 2.346, 0:00:40 left, 1,600 tokens/s (800 overall)",
    ]
    assert "\x1b" not in text


def test_a_terminal_gets_a_bar_that_is_drawn_over():
    text = shown(True, LINE)
    assert "\x1b" in text  # moves the cursor back
    assert "compiling" in text
    last = text[text.rindex("compiling") :]
    assert "250/1000" in last
    assert "1,600 tokens/s" in last


class Device:
    def __init__(self, kind: str):
        self.device_kind = kind


@pytest.mark.parametrize(
    ("kinds", "peak"),
    [
        (["TPU v5 lite"] * 4, 4 * 197e12),
        (["TPU v5"], 459e12),
        (["NVIDIA H100 80GB HBM3"], 989.5e12),
        (["NVIDIA H100 PCIe"], 756.5e12),
        (["NVIDIA H200"] * 2, 1979e12),
        (["cpu"], None),
        (["NVIDIA H100 80GB HBM3 MIG 1g.10gb"], None),
        (["NVIDIA H200", "some other"], None),
    ],
)
def test_the_peak_is_that_of_all_devices_and_unknown_where_one_is(kinds, peak):
    assert peak_flops(Device(kind) for kind in kinds) == peak


def test_peaks_are_within_what_one_chip_can_do():
    """A slip of a factor of ten, or a figure with sparsity, would stand out: the largest dense one is an H100's."""
    assert all(100e12 < peak < 1000e12 for peak in PEAK_FLOPS.values())
