"""segpipe: from a folder of scans to a trained, measured, verifiable MONAI bundle.

The modules read in the order of the data:
manifest, splits, fingerprint, plan, compose, train, bundle, predict, evaluate, report.
"""

__version__ = "0.1.0"
