"""Tests of hypha/web."""
