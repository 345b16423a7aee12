"""hypha: a server through which programs behind any firewall call each other's functions.

Importing this package imports nothing else: the parent process of ``python -m hypha.server`` stays on the
standard library (``docs/design.md``, *Processes*).
"""

__version__ = "0.1.0"
