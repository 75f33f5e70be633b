"""`python -m dray`: the same as the `dray` command."""

from dray.cluster.cli import main

if __name__ == "__main__":
    main()
