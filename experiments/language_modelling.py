"""Language modeling: how does the loss on long documents fall with the bytes of memory, in books, code and formal proofs?

Command:   infini-jax study language_modelling --scale cpu     (or smoke, accelerator)
Corpora:   smoke and cpu read the standard library's source code as bytes, which needs nothing else. accelerator also reads, of
           HOL Light, Metamath and a folder of books, what was prepared: infini-jax corpus prepare hol_light ...
Cost:      cpu at least 846 runs and 2.1e14 FLOPs, hours of two cores; not run yet since it has a ladder and five seeds (78
           runs at the first budget: 55 min). accelerator 42 runs a corpus and 2.5e16 FLOPs: at least 95 minutes at the 5
           TFLOP/s that width 256 reached on an H100, and 15 s per run to compile. It never ran to its end. `--dry-run` counts
           both.
Expected:  L + A m^-g in the bytes m of a mechanism. Code and formal proofs gain more than books, because more of their text
           copies what stands far back; names and words that were used long ago gain most. Nothing gains from the memory
           of another document.
"""

import dataclasses
import sys
from collections.abc import Iterator

from infini_jax.config import Budget, ModelConfig, RunConfig, TrainConfig
from infini_jax.config.evaluation import CARRIED, EvaluationConfig
from infini_jax.data.base import DataConfig
from infini_jax.data.corpora import CORPORA
from infini_jax.data.corpus import CorpusConfig
from infini_jax.data.minimal_pairs import blimp_place
from infini_jax.data.prepared import prepared_folders, read_manifest
from infini_jax.data.stdlib import StdlibConfig
from infini_jax.evals.base import Evaluation
from infini_jax.evals.blimp import Blimp
from infini_jax.evals.gains import Gains
from infini_jax.evals.language import LanguageEvaluation
from infini_jax.study import Study
from infini_jax.study.comparison import AT_THE_END, RATES, SMALL_READ, SMALL_TEXT, SMOKE, SMOKE_STEPS, SMOKE_TRAIN, Comparison
from infini_jax.study.ladder import Ladder

PREPARED = ("hol_light", "metamath", "text_folder")  # the last one of books

SCALES = {
    "smoke": Comparison(
        RunConfig(
            model=dataclasses.replace(SMOKE, key_taps=1, vocab=256),
            data=StdlibConfig(),
            train=dataclasses.replace(SMOKE_TRAIN, sequence=48),
            budget=Budget("steps", SMOKE_STEPS),
            evaluation=EvaluationConfig(documents=2, tokens=64, rows=2, conditions=(CARRIED,)),
        ),
        sizes=(4 << 10,),
        rates=RATES[:1],
        window=4,
        slots=48,
    ),
    "cpu": dataclasses.replace(SMALL_TEXT, seeds=5, ladder=Ladder((1e11, 4e11, 1.6e12), tolerance=0.01), growths=2),
    "accelerator": Comparison(
        RunConfig(
            model=ModelConfig(layers=4, d_model=256, heads=4, mlp_dim=1024, segment=256, vocab=256, compute="bfloat16"),
            data=StdlibConfig(),
            train=TrainConfig(batch=16, sequence=2048, evaluation_steps=1),
            budget=Budget("flops", 6e14),
            evaluation=dataclasses.replace(AT_THE_END, tokens=16_384),
        ),
        sizes=(320 << 10, 2 << 20),
        rates=(1e-3, 3e-3, 1e-2),
        window=256,
        slots=8192,
    ),
}
# On an accelerator compiling costs more than training, so that fewer mechanisms are compared on more corpora.
COMPARED = {"accelerator": ("transformer_xl", "infini", "gated_delta", "memorizing", "landmark")}
READ: dict[str, tuple[Evaluation, ...]] = {
    "smoke": (
        LanguageEvaluation(documents=2, tokens=64, rows=2),
        Gains(documents=2, tokens=64, rows=2, counted=1 << 12, draws=8),
    ),
    "cpu": SMALL_READ,
    "accelerator": (
        LanguageEvaluation(documents=32, tokens=65_536, rows=32),
        Gains(documents=32, tokens=65_536, rows=32),
    ),
}


def study(scale: str) -> Study:
    """Every mechanism at several sizes; on all corpora that are here where there is an accelerator."""
    found = SCALES[scale]
    missing: list[str] = []
    corpora = {"": found.base.data} | (dict(prepared_corpora(missing)) if scale == "accelerator" else {})
    runs = [
        dataclasses.replace(run, name=f"{corpus}-{run.name}" if corpus else run.name)
        for corpus, data in corpora.items()
        for run in found.on(data).runs(*COMPARED.get(scale, ()))
    ]
    if missing:
        print(f"language_modelling: not here: {'; '.join(missing)}", file=sys.stderr)
    return Study(
        name="language_modelling",
        question="How does the loss on long documents fall with the bytes of memory, by corpus?",
        runs=tuple(runs),
        held_equal=(*found.held_equal, *((("corpora that are not here", "; ".join(missing)),) if missing else ())),
        ladder=found.ladder,
        rates=found.grids,
        evaluations=READ[scale] + ((Blimp(pairs=100),) if scale == "accelerator" and blimp_place() else ()),
    )


def prepared_corpora(missing: list[str]) -> Iterator[tuple[str, DataConfig]]:
    """The name and the settings of the first prepared corpus of each kind; how to get the others is added to `missing`."""
    made = {read_manifest(folder).corpus: folder.name for folder in reversed(prepared_folders())}
    for corpus in PREPARED:
        if corpus in made:
            yield made[corpus], CorpusConfig(made[corpus])
        else:
            get = "" if CORPORA[corpus].get.startswith("--") else f"{CORPORA[corpus].get}, then "
            path = " --path FOLDER" if corpus == "text_folder" else ""
            missing.append(f"{corpus} ({get}infini-jax corpus prepare {corpus}{path})")
