"""The programs that evaluations call, and with how many models."""

import pytest

from infini_jax.devices.side_by_side import MemberPlaces, RowPlaces


def calls_from_now(patch: pytest.MonkeyPatch) -> list[str]:
    """The programs that are called from now on, each with how its models read: "score_batch alone" or "... members"."""
    found = []
    for kind, places in (("alone", RowPlaces), ("members", MemberPlaces)):

        def noted(self, program, *arguments, kind=kind, call=places.call):
            found.append(f"{program.__name__} {kind}")
            return call(self, program, *arguments)

        patch.setattr(places, "call", noted)
    return found
