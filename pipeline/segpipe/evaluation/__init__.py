"""Predictions against the truth: `evaluate` measures a set of cases and writes the report.

`measure` holds the one definition of each number, pure functions of arrays; case_evaluation reads and measures one
case, summary and statistics sum up, postprocessing chooses clean-up rules, evaluation_page draws, cohort is the whole.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
