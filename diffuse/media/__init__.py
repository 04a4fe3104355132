"""Pictures, films and sound, in and out, with the record inside them. It logs no runs."""
