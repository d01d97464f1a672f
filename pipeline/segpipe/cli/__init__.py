"""The `segpipe` command: one verb a file, each a thin skin over the package."""
