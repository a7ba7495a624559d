"""This room turns configurations of TRL and verl into options of rlkit; nothing of theirs runs."""
