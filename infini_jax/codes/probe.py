"""The squared-error probe: how much of a code can be read linearly from an answer."""

import numpy as np


def read_out_error(answers_NxA: np.ndarray, codes_NxC: np.ndarray) -> float:
    """Squared error of the best linear read-out of N codes from N answers, relative to the codes' variance.

    0 is exact, 1 knows nothing. An affine map is fitted by least squares on one half of the questions and scored on the other,
    both ways, so that a probe never gains by fitting noise. N questions that fit p weights of an entry err by 1 + p / (N - p -
    1) more elsewhere than the best map does (normal inputs; exact on average), which is divided out: noise alone is 1 on
    average. NaN where there are fewer than two questions for each weight.
    """
    count = len(answers_NxA)
    if count < 4 * (answers_NxA.shape[1] + 1):
        return float("nan")
    inputs = np.concatenate([answers_NxA, np.ones((count, 1))], axis=1, dtype=np.float64)
    codes = np.asarray(codes_NxC, np.float64)
    error = 0.0
    for fitted, scored in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
        gram = inputs[fitted].T @ inputs[fitted]
        ridged = gram + 1e-9 * np.trace(gram) / len(gram) * np.eye(len(gram))  # answers may span less than their width
        weights = np.linalg.solve(ridged, inputs[fitted].T @ codes[fitted])
        used = np.trace(np.linalg.solve(ridged, gram))  # p: directions that the answers really have
        inflation = 1.0 + used / (len(inputs[fitted]) - used - 1.0)
        error += np.sum((inputs[scored] @ weights - codes[scored]) ** 2) / inflation
    return float(error / np.sum((codes - codes.mean(axis=0)) ** 2))
