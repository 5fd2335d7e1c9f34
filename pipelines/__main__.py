"""`python -m pipelines` is the `regraft` command."""

from pipelines.main import main

main()
