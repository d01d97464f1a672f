"""``python -m segpipe`` is the ``segpipe`` command."""

from segpipe.cli.app import main

if __name__ == "__main__":
    main()
