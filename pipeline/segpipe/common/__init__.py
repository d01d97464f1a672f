"""What every part of the house stands on: files, the console, processes, NIfTI, provenance."""
