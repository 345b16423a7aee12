"""What starts with the server: read from a file, run, checked and supervised."""
