"""Coverage-guided fuzzing of what reads bytes of strangers, on demand (``python -m tests.fuzz.target``)."""
