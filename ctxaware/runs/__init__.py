"""Interrupted work: claims of output folders, files that are whole or absent, processes, progress."""
