"""Tests of hypha/wire."""
