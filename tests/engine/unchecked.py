"""`regraft` without the check that the disk has room for a run at all."""

from pipelines.main import main
from pipelines.planning import preflight

preflight.LEAST_FREE_BYTES = 0
if __name__ == "__main__":
    main()
