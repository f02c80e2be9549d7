"""The associative memory of arXiv 2407.04841 in float64 NumPy, key by key; nothing is shared with the package."""

import numpy as np

from tests.reference.infini import dpfp, sigmoid

EPSILON = 1e-5


def recall(A_FxD, z_F, phi_F):
    return phi_F @ A_FxD / (phi_F @ z_F + EPSILON)


class Associations:
    """What memory tokens of earlier segments said, per layer: a mechanism of `tests.reference.memory_tokens`.

    Attributes:
      held: A FxD and z F of each layer.
      gammas: those of every token that was written; given ones are used in their place, as no gradient goes through them.
    """

    def __init__(self, count, gammas=None):
        self.count, self.held, self.gammas, self.given = count, {}, [], gammas

    def enter(self, number, p, x_TxD, around, open_document):
        x_TxD = np.array(x_TxD)
        for t, document in enumerate(around):
            if document == open_document:
                A_FxD, z_F = self.held[number]
                x_TxD[t] += recall(A_FxD, z_F, dpfp(x_TxD[t] @ p["ask"]["kernel"], 3))
        return x_TxD

    def leave(self, number, p, x_TxD, around, open_document):
        features = 6 * p["key"]["kernel"].shape[1]
        empty = np.zeros((features, x_TxD.shape[1])), np.zeros(features)
        A_FxD, z_F = self.held[number] if around[-1] == open_document else empty
        after_FxD, after_F = A_FxD.copy(), z_F.copy()
        for m_D in x_TxD[-self.count :]:
            phi_F = dpfp(m_D @ p["key"]["kernel"], 3)
            beta = sigmoid(m_D @ p["strength"]["kernel"][:, 0] + p["strength"]["bias"][0])
            gamma = min(max(1 - phi_F @ z_F / (phi_F @ phi_F + EPSILON), 0.0), 1.0)
            self.gammas.append(gamma)
            gamma = gamma if self.given is None else self.given[len(self.gammas) - 1]
            after_FxD += beta * np.outer(phi_F, m_D @ p["value"]["kernel"] - recall(A_FxD, z_F, phi_F))
            after_F += gamma * phi_F
        self.held[number] = after_FxD, after_F

    def finish(self, x_TxD):
        pass
