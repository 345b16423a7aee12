"""People: who has an account, in which browsers they are signed in, and what they have given out. No HTTP."""
