"""What a segmentation is worth: one definition of each measure, used wherever one is quoted.

    overlap        Dice, IoU, precision, recall, specificity, volume: by voxel count; any measure per sample
    probabilities  Dice and expected calibration error of probabilities
    distance       HD between voxel sets; HD95, ASSD and NSD between surfaces
    lesion         F1 and Dice by lesion
    case_measures  the one list of measures; a prediction against a truth, label by label, empty masks too

Masks are arrays of three axes, nonzero inside. Distances are in mm, volumes in mL, scores in [0, 1].
What is not defined is None, never NaN and never infinite.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
