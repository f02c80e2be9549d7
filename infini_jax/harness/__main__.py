"""The command line of lm-evaluation-harness, whose registry of models has `infini_jax` in it.

The harness has no place where an installed package could declare a model, so that `lm_eval` itself knows none of ours.
"""

import sys

from infini_jax.errors import CheckpointError, ConfigError, installs


def main() -> None:
    """Runs the harness on the arguments of this process; a mistake in the model's settings ends with one line and code 2."""
    try:
        import lm_eval.__main__ as harness
    except ImportError:
        told = ConfigError("installation", "the package lm_eval is not installed", installs("harness"))
        print(f"infini-jax: {told}", file=sys.stderr)
        sys.exit(2)
    import infini_jax.harness.model  # noqa: F401  enters the registry

    try:
        harness.cli_evaluate()
    except (ConfigError, CheckpointError) as error:
        print(f"infini-jax: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)


if __name__ == "__main__":
    main()
