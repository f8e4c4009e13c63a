"""Free-running members in a storm of faults, judged from its log. `python -m stress.chaos`."""
