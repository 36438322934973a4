"""Every folder below the five rooms is a package `compress.<folder>`; the rest is in pyproject.toml."""

from setuptools import find_packages, setup

ROOMS = ("cli", "recipes", "passes", "formats", "kernels")

setup(packages=[f"compress.{name}" for name in find_packages(include=[f"{room}*" for room in ROOMS])])
