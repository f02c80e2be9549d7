"""Where generated text ends before its number of tokens is reached: in front of a text, or of a token.

Both are looked for on the host, which gets every token anyway: the compiled step knows nothing of them.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator

from infini_jax.errors import check_fields, require, require_utf8


@dataclasses.dataclass(frozen=True)
class Stopping:
    """Settings of where generated text ends.

    Attributes:
      stop: texts in front of which it ends, also where they come in parts; of several the one that is complete first.
      stop_token: number of a token in front of which it ends, such as `Tokenizer.end`; None for none.
    """

    stop: tuple[str, ...] = ()
    stop_token: int | None = None

    def check(self, vocab: int) -> None:
        """Checks the settings: raises `ConfigError` for what can never come from a tokenizer of `vocab` tokens."""
        check_fields("", self)
        for text in self.stop:
            require(text != "", "stop", "it is empty", "give a text")
            require_utf8("stop", text, "give text")
        is_one = self.stop_token is None or 0 <= self.stop_token < vocab
        problem = f"{self.stop_token} is none of the tokenizer's {vocab} tokens"
        require(is_one, "stop_token", problem, f"give 0 to {vocab - 1}")

    def tokens(self, tokens: Iterable[int]) -> Iterator[int]:
        """The tokens in front of the one that ends them."""
        return itertools.takewhile(lambda token: token != self.stop_token, tokens)

    def texts(self, texts: Iterable[str]) -> Iterator[str]:
        """The text in front of the one that ends it, as it comes: what may be the beginning of such a text waits."""
        held = ""
        for text in texts:
            held += text
            if ends := [(begin + len(stop), begin) for stop in self.stop if (begin := held.find(stop)) >= 0]:
                yield held[: min(ends)[1]]
                return
            sure = len(held) - max((begun(held, stop) for stop in self.stop), default=0)
            yield held[:sure]
            held = held[sure:]
        yield held


def begun(text: str, stop: str) -> int:
    """The number of characters at the end of a text with which `stop` begins."""
    return next(count for count in range(min(len(stop) - 1, len(text)), -1, -1) if text.endswith(stop[:count]))
