"""One training loop for every model that the project trains, and the recipes that name its settings."""
