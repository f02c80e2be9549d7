"""Command line of the package: `python -m infini_jax` is `infini-jax`."""

from infini_jax.cli.main import main

if __name__ == "__main__":  # workers of a study import this file again
    main()
