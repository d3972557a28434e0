"""A sample plug-in: one method."""
