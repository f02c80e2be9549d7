"""Models of the Hugging Face Hub, by the package `huggingface_hub`: where they lie on this machine once they are there.

Files are kept in that package's cache, $HF_HOME, and asked for again only where they have changed; without a network what is
there is taken. $HF_ENDPOINT names another hub that speaks as it does.
"""

import re
from pathlib import Path

from infini_jax.errors import ConfigError, disk_reason, installs, one_line

NAME = re.compile(r"[\w.-]+/[\w.-]+")  # OWNER/NAME
WANTED = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json", "tokenizer.model", "README.md")
LEFT_OUT = ("*/*", "consolidated*")  # the same weights in other formats


def is_hub_name(source: str) -> bool:
    """Whether a text has the form OWNER/NAME of a model on the hub."""
    return NAME.fullmatch(source) is not None


def snapshot(name: str) -> Path:
    """The folder with a model's config.json, safetensors, tokenizer and card, downloaded where they are not here yet.

    Raises `ConfigError` of one line with the mend, where the package is not installed, the hub has no such model, its owner
    lets nobody read it who did not ask, or the hub cannot be reached.
    """
    missing = f"there is no {name} on this machine"
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        told = f"{missing}, and the package huggingface_hub, which would download it, is not installed"
        raise ConfigError("source", told, installs("pretrained")) from error
    try:
        return Path(snapshot_download(name, allow_patterns=list(WANTED), ignore_patterns=list(LEFT_OUT)))
    except errors.GatedRepoError as error:  # a kind of the next one
        mend = "accept its terms on its page of the hub, and log in: hf auth login"
        raise ConfigError("source", f"{missing}, and on the hub it is gated", mend) from error
    except errors.RepositoryNotFoundError as error:
        mend = "look the name up, or log in where it is private: hf auth login"
        raise ConfigError("source", f"{missing}, and the hub shows none of this name", mend) from error
    except Exception as error:  # of the network, by whatever library it is reached
        if disk_reason(error):
            raise
        told = f"{missing}, and the hub cannot be reached or gives it not whole ({reason_of(error)})"
        mend = f"try again, or download it elsewhere, hf download {name} --local-dir FOLDER, and import that folder"
        raise ConfigError("source", told, mend) from error


def reason_of(error: BaseException) -> str:
    """The first line of what went wrong at first: the client says of every failure that it found nothing in its cache."""
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(error)
