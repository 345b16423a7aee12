"""Tests with the published clients, each in an environment of its own, as real processes."""
