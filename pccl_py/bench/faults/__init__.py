"""`pccl bench faults`: what a death, a stop, a join and a coordinator's restart cost."""
