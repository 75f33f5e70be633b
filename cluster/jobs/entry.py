"""`python -m dray.cluster.jobs.entry ID --attempt N -- WORDS`: a command line of dray inside a Ray job."""

import sys

from dray.cluster.cli import main


def run() -> None:
    """Run the command line after `--`."""
    sys.argv = ["dray", *sys.argv[sys.argv.index("--") + 1 :]]
    main()


if __name__ == "__main__":
    run()
