"""`python -m pipelines.remote.driver …`: the `regraft` command as a job of a cluster, with what was handed on to it."""

from clusters.handover import receive
from pipelines.main import main

if __name__ == "__main__":
    receive()
    main()
