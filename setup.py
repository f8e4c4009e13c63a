"""Setuptools takes cffi modules only from a setup.py; everything else is in pyproject.toml."""

from setuptools import setup

setup(cffi_modules=["pccl_py/dataplane/build.py:engine_builder"])
