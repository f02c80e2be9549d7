"""Made-up results of a study: rows, settings, logs and the figures of every evaluation, each number a different one."""

import dataclasses
import json
import math
from pathlib import Path

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.data.mqar import MqarConfig
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.memory.local import LocalConfig
from infini_jax.records.measures import Measure, join_measures, write_measures
from infini_jax.records.rows import Row, write_rows

SERIES = (
    ("local", ""),
    ("transformer_xl", ""),
    ("infini", "linear"),
    ("infini", "delta"),
    ("memorizing", ""),
    ("landmark", ""),
    ("infinite_former", ""),
)
SIZES, SEEDS, TASKS = (4096, 15872, 65536), (0, 1), ("mqar", "python_stdlib")


def row_of(task: str, mechanism: str, variant: str, size: int, seed: int) -> Row:
    """A made-up run; every score is a different number."""
    rank = SERIES.index((mechanism, variant))
    step = SIZES.index(size)
    recall = 0.03 + 0.0113 * seed + (0.1234 + 0.031 * rank) * step * (mechanism != "local")
    gated = mechanism in ("infini", "memorizing")
    return Row(
        run="-".join(filter(None, (task, mechanism, variant, str(size), str(seed)))),
        version=1,
        fingerprint=f"{rank:x}{step:x}{seed:x}",
        seed=seed,
        study="quick",
        task=task,
        mechanism=mechanism,
        variant=variant,
        memory_bytes=size - 8 * rank,
        parameters=123_456 + rank,
        learning_rate=1e-2,
        flops_per_token=2.5e5 * (1 + 0.1 * rank),
        budget_unit="flops",
        budget_amount=3e11,
        gives="steps",
        flops_planned=2.99e11 + 1e8 * rank,
        flops_actual=2.99e11 + 1e8 * rank,
        flops_counted=2.98e11 + 1e8 * rank,
        flops_executed=3.7e11 + 1e9 * rank,
        steps=400 - 10 * rank,
        tokens=(400 - 10 * rank) * 4096,
        seconds=60.0 + rank + seed,
        compile_seconds=4.2,
        train_loss=1.0,
        loss=(2.4 if task == "python_stdlib" else 3.4) - 0.07 * step - 0.011 * rank + 0.0121 * seed,
        accuracy=recall,
        test_loss=None,
        test_accuracy=None,
        gate_mean=0.31 + 0.05 * step + 0.001 * seed if gated else None,
        gate_spread=0.2 if gated else None,
        corpus="drawn afresh at every step" if task == "mqar" else "Python 3.11 standard library",
        python="3.11.9",
        jax="0.10.2",
        flax="0.12.8",
        package="0.1.0",
        device="a processor, 2 cores",
        finished=f"2025-01-0{1 + step}T00:00:00+00:00",
    )


def config_of(row: Row, segment: int = 0) -> RunConfig:
    """Settings that fit a made-up row; the memory's own do not matter here."""
    data = MqarConfig(pairs=8, symbols=64) if row.task == "mqar" else StdlibConfig()
    memory = {"memory": LocalConfig(window=8)} if row.mechanism == "local" else {}
    model = ModelConfig(vocab=data.vocab, segment=segment or (16 if row.task == "mqar" else 64), **memory)
    return RunConfig(
        name=row.run, seed=row.seed, model=model, data=data, train=TrainConfig(sequence=128), budget=Budget("flops", 3e11)
    )


def metric_lines(row: Row) -> list[dict[str, float]]:
    """A loss that falls to the row's held-out loss."""
    lines = []
    for step in range(10, row.steps + 1, 10):
        share = step / row.steps
        line = {"step": step, "tokens": step * 4096, "loss": row.loss + (4.2 - row.loss) * (1 - share) ** 3}
        lines.append(line | ({"gate_mean": 0.5 + (row.gate_mean - 0.5) * share} if row.gate_mean is not None else {}))
    return lines


def made_rows() -> list[Row]:
    return [row_of(task, *series, size, seed) for task in TASKS for series in SERIES for size in SIZES for seed in SEEDS]


def fill(folder: Path, rows: list[Row], failures: list[dict[str, str]] = (), configs: dict[str, RunConfig] | None = None):
    """Writes a study's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(rows, folder / "results.parquet")
    (folder / "failed.json").write_text(json.dumps(list(failures)))
    for row in rows:
        run = folder / "runs" / row.run
        run.mkdir(parents=True)
        (run / "config.json").write_text(json.dumps((configs or {}).get(row.run, config_of(row)).to_dict()))
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metric_lines(row)))


def share(value: float, count: int = 400) -> tuple[float, int, float, float]:
    """value, count, low, high: of a share with a made-up interval."""
    value = min(max(value, 0.0), 1.0)
    half = 1.96 * math.sqrt(value * (1 - value) / count)
    return value, count, max(0.0, value - half), min(1.0, value + half)


def strength(row: Row) -> float:
    """How well a made-up run does, from 0 to about 1."""
    return min(1.0, row.accuracy)


def recall_measures(row: Row) -> list[Measure]:
    """MQAR, capacity and gates."""
    found, scalars, strong = [], row.memory_bytes / 4, strength(row)
    for pairs in (8, 16, 32):
        labels = {"pairs": pairs, "length": 4 * pairs, "overwrites": 0}
        found.append(Measure("mqar", "accuracy", *share(strong * 8 / pairs + 0.02 * row.seed), labels))
    half = (0.5 + strong) * scalars / (2 * math.log(64))
    for load in (0.2, 0.5, 1.0, 2.0, 4.0):
        pairs = round(half * load)
        accuracy = 1 / (1 + load**2.5) + 0.004 * row.seed
        found.append(Measure("capacity", "accuracy", *share(accuracy), {"pairs": pairs, "symbols": 64}))
        found.append(Measure("capacity", "nmse", 1 - accuracy, 400, labels={"pairs": pairs}))
    found.append(Measure("capacity", "n50", half * (1 + 0.03 * row.seed), 2000, half * 0.93, half * 1.1))
    for age in (0, 8, 16, 32, 64):
        labels = {"pairs": 128, "age": age}
        found.append(Measure("capacity", "accuracy_by_age", *share((0.5 + strong / 2) * math.exp(-age / 40)), labels))
    for writes in (1, 2, 4, 8):
        labels = {"pairs": 128, "writes": writes}
        found.append(Measure("capacity", "accuracy_by_writes", *share((0.5 + strong / 2) * 0.8**writes), labels))
    if row.gate_mean is not None:
        gates = [(layer, head) for layer in (0, 1) for head in (0, 1, 2, 3)]
        found += [
            Measure("gates", "gate", row.gate_mean + 0.04 * head - 0.05 * layer, 1, labels={"layer": layer, "head": head})
            for layer, head in gates
        ]
    return found


def language_measures(row: Row) -> list[Measure]:
    """Passkey, haystack, sorting, perplexity, gains and BLiMP."""
    found, strong = [], strength(row)
    for length in (1024, 4096, 16384, 65536):
        for novelty in (0, 16, 64, 256):
            for depth in (0.0, 0.25, 0.5, 0.75, 1.0):
                fade = 0.0 if row.mechanism == "local" else strong * 1024 / (1024 + 0.02 * length + 3 * novelty)
                labels = {"length": length, "novelty": novelty, "depth": depth}
                value = share(fade + 0.03 * row.seed * bool(fade), 50)
                found.append(Measure("passkey", "exact_match", *value, labels | {"format": "landmark"}))
                found.append(Measure("passkey", "token_accuracy", *value, labels | {"format": "infini"}))
    for kind, ease in (("facts1", 1.0), ("facts2", 0.6)):
        for length in (1024, 4096):
            value = share(ease * strong * 1024 / length + 0.02 * row.seed, 50)
            found.append(Measure("haystack", "hit", *value, {"kind": kind, "length": length}))
    for length in (4000, 8000, 16000):
        for metric, top in (("teacher_forced", 0.6), ("free_running", 0.5), ("kendall_tau", 0.7)):
            value = share(top * strong + 0.05 + 0.01 * row.seed)
            found.append(Measure("sorting", metric, *value, {"length": length}))
        for window, value in ((512, 0.34), (1024, 0.38), (2048, 0.46)):
            labels = {"length": length, "window": window}
            found.append(Measure("sorting", "ceiling_window", value * (4000 / length) ** 0.1, 400, labels=labels))
        found.append(
            Measure("sorting", "ceiling_mean", 0.41 + 0.08 * math.log2(length / 4000), 400, labels={"length": length})
        )
    found.append(Measure("sorting", "chance", 0.05, 400))
    memoryless = row.mechanism == "local"
    for condition, more in (
        ("carried", 0.0),
        ("reset", 0.0 if memoryless else 0.09),
        ("another", 0.0 if memoryless else 0.07),
    ):
        found.append(Measure("perplexity", "loss", row.loss + more, 5000, labels={"condition": condition}))
    classes = {
        "rarity": ("common", "uncommon", "rare"),
        "gap": ("< 512", "512-8192", "> 8192"),
        "kind": ("names", "references", "functions"),
    }
    for control, scale in (("reset", 1.0), ("another", 0.8)):
        for name, members in classes.items():
            for n, member in enumerate(members):
                gain = scale * (0.02 * n * strong - 0.004) + 0.001 * row.seed
                labels = {"control": control, "by": name, "class": member}
                found.append(Measure("gains", "gain", gain, 900, gain - 0.006, gain + 0.006, labels))
    for n, phenomenon in enumerate(("anaphor agreement", "argument structure", "binding", "ellipsis")):
        for paradigm in range(2):
            value = share(0.55 + 0.05 * n + 0.02 * paradigm + 0.003 * row.seed, 1000)
            found.append(
                Measure("blimp", "accuracy", *value, {"paradigm": f"{phenomenon} {paradigm}", "phenomenon": phenomenon})
            )
    found.append(Measure("blimp", "accuracy", *share(0.64 + 0.003 * row.seed, 8000), {"phenomenon": "all"}))
    return found


def random_row(rule: str, dim: int) -> Row:
    """A job that trains nothing: one update rule at one size."""
    row = row_of("mqar", "infini", "linear", SIZES[0], 0)
    name = f"random-{rule}-{dim}"
    same = {"study": "quick", "task": "random_codes", "mechanism": rule, "variant": "", "learning_rate": None}
    return dataclasses.replace(
        row, run=name, **same, memory_bytes=4 * dim * dim, gate_mean=None, gate_spread=None, accuracy=0.5
    )


def random_measures(rule: str, dim: int) -> list[Measure]:
    """Random codes under one rule."""
    labels = {"rule": rule, "key_dim": dim, "value_dim": dim, "symbols": 8192}
    half = {"sum": 1.0, "least_squares": 1.25, "delta": 0.45}[rule] * dim * dim / (2 * math.log(8192))
    found = [
        Measure("random_codes", "accuracy", *share(1 / (1 + load**4)), labels | {"pairs": round(half * load)})
        for load in (0.25, 0.5, 0.8, 1.0, 1.3, 2.0, 4.0)
    ]
    found += [
        Measure(
            "random_codes",
            "survival_by_age",
            math.exp(-age / dim) if rule == "delta" else 1.0,
            400,
            labels=labels | {"age": age},
        )
        for age in (0, 16, 32, 64, 128)
    ]
    return [*found, Measure("random_codes", "n50", half, 400, half * 0.96, half * 1.04, labels)]


def write_all_measures(folder: Path, rows: list[Row]) -> None:
    """Writes measures.parquet of a study."""
    parts = []
    for row in rows:
        if row.task == "random_codes":
            found = random_measures(row.mechanism, math.isqrt(row.memory_bytes // 4))
        else:
            found = [*recall_measures(row), *language_measures(row)]
        parts.append(folder / f"{row.run}.parquet")
        write_measures(row.run, found, parts[-1])
    join_measures(parts, folder / "measures.parquet")
    for part in parts:
        part.unlink()
