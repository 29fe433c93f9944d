"""``python -m tuneserve``."""

from tuneserve.cli import main

if __name__ == "__main__":
    main()
