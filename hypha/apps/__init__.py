"""Programs that run in a browser on the server, and offer services like every other client."""
