"""Load for a long time and in every way that ends badly: what the server holds afterwards is what it held before."""
