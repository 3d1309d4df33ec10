"""Grids: every combination a process of its own and a row of its own, whatever happens to it."""
