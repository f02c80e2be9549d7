"""Names that people from other libraries type, and the nearest name here: by meaning, or by spelling."""

from collections.abc import Iterable

from infini_jax.errors import suggestion

MANY = 20  # names, which nobody reads in one line
MEANINGS = {  # the last part of what is typed -> the last part of names here
    "lr": "learning-rate",
    "lrate": "learning-rate",
    "bs": "batch",
    "batch-size": "batch",
    "seq-len": "sequence",
    "seq-length": "sequence",
    "sequence-length": "sequence",
    "max-length": "sequence",
    "block-size": "segment",
    "segment-length": "segment",
    "chunk-size": "segment",
    "steps": "amount",
    "max-steps": "amount",
    "num-steps": "amount",
    "epochs": "amount",
    "wd": "weight-decay",
    "optimizer": "optimiser",
    "optim": "optimiser",
    "scheduler": "schedule",
    "grad-clip": "clip",
    "clip-norm": "clip",
    "max-grad-norm": "clip",
    "grad-accum": "accumulate",
    "gradient-accumulation-steps": "accumulate",
    "ema": "average",
    "hidden-size": "d-model",
    "dim": "d-model",
    "width": "d-model",
    "n-layers": "layers",
    "num-layers": "layers",
    "depth": "layers",
    "n-heads": "heads",
    "num-heads": "heads",
    "head-dim": "key-dim",
    "vocab-size": "vocab",
    "dtype": "compute",
    "precision": "compute",
    "checkpoint": "step",
    "output": "results",
    "output-dir": "results",
    "out": "output",
    "nucleus": "top-p",
    "max-tokens": "tokens",
    "max-new-tokens": "tokens",
    "num-workers": "jobs",
    "workers": "jobs",
    "run-name": "name",
    "fit": "train",
    "run": "train",
    "eval": "evaluate",
    "test": "evaluate",
    "sample": "generate",
    "status": "watch",
    "progress": "watch",
    "diff": "compare",
    "check": "doctor",
    "version": "doctor",
    "data": "corpus",
    "prepare": "corpus",
    "list": "mechanisms",
    "estimate": "plan",
    "xl": "transformer-xl",
    "attention": "full",
    "softmax": "full",
    "none": "local",
    "window": "local",
    "sliding-window": "local",
    "infini-attention": "infini",
    "deltanet": "gated-delta",
    "gated-deltanet": "gated-delta",
    "delta": "gated-delta",
    "knn": "memorizing",
    "recall": "mqar",
    "needle": "haystack",
    "niah": "haystack",
    "text": "corpus",
    "code": "python-stdlib",
    "stdlib": "python-stdlib",
    "sort": "sorting",
}


def near(typed: str, known: Iterable[str]) -> str:
    """The mend for a name that is not known: names of the same meaning, else the nearest spelling, else all of a few."""
    known = list(known)
    group, _, last = hyphened(typed).lower().rpartition(".")
    meant = [one for one in known if hyphened(one).rpartition(".")[2] == MEANINGS.get(last, last)]
    if meant:
        first = [one for one in meant if hyphened(one).rpartition(".")[0] == group] or meant
        return f"did you mean {' or '.join(one if one.startswith('-') else repr(one) for one in first[:3])}?"
    mend = suggestion(typed, known)
    return mend if len(known) < MANY or mend.startswith("did") else "--help-all lists all of them"


def hyphened(name: str) -> str:
    """A name without dashes in front, as options are written."""
    return name.lstrip("-").replace("_", "-")
