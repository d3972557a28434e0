"""What is shown of a run: numbers (`metrics`), words, tables, plots and the page. No torch here."""
