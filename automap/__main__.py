"""`python -m automap` is the command `automap`."""

from automap.cli import main

if __name__ == "__main__":
    main()
