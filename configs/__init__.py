"""Resolved configs of the presets, checked in so that a change of a preset shows in the diff."""
