"""What the figures say: the theory of recall, fits with intervals, the predictions and their verdicts."""
