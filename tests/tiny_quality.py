"""Generated rows of a quality model: no model, no image."""

from __future__ import annotations

import numpy as np

from segpipe.quality import AS_IT_IS, Row

LABEL = "liver"


def rows(patients: int, seed: int = 0, spoiled: int = 1) -> list[Row]:
    """Patients whose Dice falls with the noise of their image; a spoiled one is noisier."""
    random, made = np.random.default_rng(seed), []
    for patient in range(patients):
        for number in range(1 + spoiled):
            noise = float(np.exp(random.normal(-3 + 2.5 * (number > 0), 0.2)))
            dice = float(np.clip(0.95 - 1.2 * noise + random.normal(0, 0.01), 0, 1))
            volume = float(np.exp(random.normal(7, 0.2)))
            features = {
                "image:noise": noise,
                "image:p50": float(random.normal()),
                f"{LABEL}:volume": volume,
                f"{LABEL}:doubt": float(np.clip(0.05 + noise / 3, 0, 1)),
            }
            kind = "noise" if number else AS_IT_IS
            ratio = float(np.exp(random.normal(0, 0.05)))
            made.append(Row(f"c{patient}", f"p{patient}", kind, number, features, {LABEL: dice}, {LABEL: ratio}))
    return made
