"""What a config needs of a machine that is not here: does it fit, and how long does it take."""
