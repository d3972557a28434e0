"""What a run keeps: the columns (`schema`) and the files that hold them (`store`). No torch here."""
