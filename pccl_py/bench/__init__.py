"""Measuring (layer 6): `pccl bench`, in the language of nccl-tests."""
