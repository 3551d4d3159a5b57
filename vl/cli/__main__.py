"""`python -m vl.cli` is the `vl` command."""

from vl.cli.app import main

if __name__ == "__main__":  # worker processes of training import this module too
    main()
