"""This room writes the pages of the reference from the code: every option, and every command."""
