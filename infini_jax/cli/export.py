"""`infini-jax export`: a run or an imported model as files that other programs read."""

from pathlib import Path
from typing import Literal

import tyro

from infini_jax.cli.output import terminal
from infini_jax.errors import require
from infini_jax.model.cost import parameter_count
from infini_jax.pretrained.exporting import exported
from infini_jax.training.checkpoint import Which
from infini_jax.training.exported import imported_source, save_exported
from infini_jax.training.trained import Trained, saved_config
from infini_jax.units import human_bytes


def export(
    run: tyro.conf.Positional[Path],
    folder: tyro.conf.Positional[Path],
    step: Which = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
) -> None:
    """Export a run or an imported model as safetensors with config.json, tokenizer and model card.

    A model that fits a family (LLaMA, Mistral, Qwen2, Qwen3, GPT-2, GPT-NeoX, Gemma 3) is exported as a model of that family,
    which transformers loads. Any other keeps the settings of its run in config.json, and infini_jax loads it.

    Examples: `infini-jax export results/models/smollm2 smollm2`,
    `infini-jax export results/runs/run run-100 --step 100 --dtype bfloat16`

    Args:
      run: folder of a run, as `infini-jax train` or `infini-jax import` writes it.
      folder: new folder for the files.
      step: checkpoint, by step, or best for the lowest validation loss. Default: the newest.
      dtype: type of the tensors.
    """
    from infini_jax.report.model_card import model_card  # reports draw, and matplotlib takes a second to load

    require(not folder.exists(), "folder", f"{folder} is there already", "give another folder, or remove it")
    tokenizer = saved_config(run).data.open_tokenizer()
    trained = Trained.open(run, step)
    source = imported_source(trained)
    context = (source or {}).get("architecture", {}).get("context", 0)
    model = exported(trained.run, trained.step, trained.params, dtype, context)
    size = save_exported(model, tokenizer, model_card(trained, model, dtype, source), folder)
    said = f"{folder}: {model.family}, {parameter_count(trained.run.model):,} parameters in {human_bytes(size)} of {dtype}"
    terminal().print(said, highlight=False, soft_wrap=True)
