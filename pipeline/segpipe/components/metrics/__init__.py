"""The measures of `segpipe.evaluation.measure` as Ignite metrics, reduced over processes.

    cases        any measure of `evaluate`, case by case, then the mean; CaseDice chooses the best weights
    pooled       overlap from the voxels of all cases together
    soft         Dice of probabilities, pooled or per sample
    calibration  ECE from the voxels of all cases together

Under several processes every case should come once: a sampler that pads its last batch counts some twice.
"""

from segpipe.components.metrics.label_metrics import CalibrationError, CaseDice, CaseMetric, PooledMetric, SoftDice

__all__ = ["CalibrationError", "CaseDice", "CaseMetric", "PooledMetric", "SoftDice"]
