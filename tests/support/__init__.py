"""Models, oracles and methods that the tests share."""
