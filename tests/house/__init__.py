"""What the tests stand on: environments, deadlines, the leak check, and the rules of the house."""
