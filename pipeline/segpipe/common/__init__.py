"""What every part of the house stands on: files, the console, processes, NIfTI, provenance.

A set of modules without one door: each is imported by its own name, `segpipe.common.files`.
"""
