"""The yardsticks: programs that pass messages on and do nothing else. Each prints where it listens, as the server does.

They have no permissions, no limits and no bounds, and break when a client is not the benchmark.
"""
