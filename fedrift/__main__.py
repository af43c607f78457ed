"""Run the command line with ``python -m fedrift``."""

from .cli import main

if __name__ == "__main__":
    main()
