"""segpipe: from a folder of scans to a trained, measured, verifiable MONAI bundle."""

__version__ = "0.1.0"
