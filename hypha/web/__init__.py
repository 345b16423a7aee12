"""HTTP and websockets: the only room that knows ASGI, Quart and Hypercorn."""
