"""What is measured: the runner, the only clock, prompts, provenance and the check that the text is the target's own."""
