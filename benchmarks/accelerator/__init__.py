"""The campaign: what only an accelerator can tell, as an ordered list of parts that goes on where an earlier call ended."""
