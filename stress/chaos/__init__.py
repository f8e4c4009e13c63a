"""Groups of real processes that run random collectives while members are killed, stopped and
restarted; a parent that was not there judges every value. `python -m stress.chaos --help`."""
