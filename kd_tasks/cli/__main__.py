"""`python -m kd_tasks.cli`."""

from kd_tasks.cli import main

main()
