"""``python -m pipeline`` is the ``segpipe`` command."""

import os

from pipeline.cli import main

if __name__ == "__main__":
    if os.environ.pop("SEGPIPE_CHILD", None):  # set by `pipeline.children`
        from pipeline.processes import die_with_parent

        die_with_parent()
    main()
