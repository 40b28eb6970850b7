"""`python -m api.cli`: as `holdbook`."""

from api.cli import main

main()
