"""Which tokens are hidden: pure functions of a key."""
