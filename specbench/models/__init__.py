"""Where weights come from: the embedded family, a folder, the hub, or a named shape with random weights."""
