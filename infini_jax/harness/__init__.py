"""Runs and imported models in EleutherAI's lm-evaluation-harness: `python -m infini_jax.harness` is its command line."""
