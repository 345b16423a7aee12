"""Sessions, routing, permission and the server's own services. No HTTP, no files."""
