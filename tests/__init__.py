"""The tests of hypha. ``python3 -m tests`` from the root of the repository runs everything.

Standard library only: this package is imported before any environment exists.
"""
